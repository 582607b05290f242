"""Turns settings into a job, and checks everything that can be checked without workers."""
