"""Dropout, stochastic depth, residual addition and the norm after it."""
