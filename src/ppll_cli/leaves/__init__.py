"""Helpers that every other folder may use: files, text, the machine."""
