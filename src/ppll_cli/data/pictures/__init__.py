"""Data sets of pictures for super-resolution, which are divided into patches and tiles."""
