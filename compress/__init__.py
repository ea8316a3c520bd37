"""Teacher and code in, a checked bundle out."""
