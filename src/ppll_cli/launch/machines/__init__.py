"""Runs over several machines: one launcher on each."""
