"""Measurements of the kernels and of whole fits, against their peers."""
