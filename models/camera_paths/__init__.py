"""Camera paths of any model: arithmetic of poses, files of recorded ones, and strings of keys held."""
