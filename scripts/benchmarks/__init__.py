"""Benchmarks: a module for each NAME of `scripts/benchmark NAME`, and modules that these share."""
