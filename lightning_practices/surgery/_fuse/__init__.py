"""Fuse the layers of a model, and undo it."""
