"""A graph below a list of entries, restricted to those of them that are kept."""
