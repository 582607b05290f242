"""Models: ordered lists of named units."""
