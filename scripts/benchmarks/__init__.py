"""Benchmarks: a module for each NAME of `scripts/benchmark NAME`, and parts that they share."""
