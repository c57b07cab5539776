"""Places of a program where something is decided at run time: which context frames, and which denoising steps."""
