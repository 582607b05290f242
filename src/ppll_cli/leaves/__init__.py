"""Small helpers for all other packages: files, text, processes and the machine."""
