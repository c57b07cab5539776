"""One rewritten graph, written to a file that standard tools load."""
