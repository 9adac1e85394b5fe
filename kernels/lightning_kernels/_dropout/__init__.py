"""Dropout of elements and of channels, and dropout with an activation."""
