"""Turns settings into a job, and checks all that can be checked without workers."""
