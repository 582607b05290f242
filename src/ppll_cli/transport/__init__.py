"""Channels, which send named tensors between stages, and operations between replicas."""
