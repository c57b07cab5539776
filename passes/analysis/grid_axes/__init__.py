"""What the axes of a tensor mean to a video model, and how each operation carries that."""
