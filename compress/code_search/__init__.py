"""Code search: a bi-encoder teacher distilled into a small student that embeds queries and code into one space."""
