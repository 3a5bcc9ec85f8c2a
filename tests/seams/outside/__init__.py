"""A toy of each kind of extension, one a file."""
