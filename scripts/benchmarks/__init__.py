"""Benchmarks: one file for each NAME of `scripts/benchmark NAME`."""
