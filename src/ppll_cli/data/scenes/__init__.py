"""Data sets of pictures of any size with boxes of objects, for object detection."""
