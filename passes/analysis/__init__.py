"""Analyses of a program. They change nothing; each is computed once and dropped when the graph changes."""
