"""Gradient clipping over many tensors at once."""
