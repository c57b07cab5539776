"""HY-WorldPlay: the 8B autoregressive video world model, at any size."""
