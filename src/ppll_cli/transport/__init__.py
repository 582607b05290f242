"""Channels, which carry named tensors between stages, and groups of replicas."""
