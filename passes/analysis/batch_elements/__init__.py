"""Which values belong to which element of a batch, and how to compute a graph for one element alone."""
