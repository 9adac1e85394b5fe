"""Measurements of the kernels and of whole fits, compared with peer implementations."""
