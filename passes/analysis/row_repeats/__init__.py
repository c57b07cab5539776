"""Which values are repetitions of smaller ones, how operations carry that, and how to compute on the smaller ones."""
