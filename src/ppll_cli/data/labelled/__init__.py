"""Data sets of labelled pictures of any size, which are converted to images of one size."""
