"""Composes and checks the configuration, and creates the objects it names. Imports no torch."""
