"""Channels: how named tensors travel between stages."""
