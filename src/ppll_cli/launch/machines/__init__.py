"""Runs over several machines, with one launcher on each."""
