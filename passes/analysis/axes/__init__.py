"""How every operator moves axes, said once; what an analysis knows of an axis follows that."""
