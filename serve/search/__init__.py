"""Code search: an index of the units of projects, by what they mean and by the words they are made of."""
