"""Stochastic depth with residual addition and layer scale."""
