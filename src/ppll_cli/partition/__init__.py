"""Partition: units into modules, modules into stages, and what crosses each cut."""
