"""Dropout, stochastic depth, layer scale, addition of the residual and norm, in one pass.

- ``add_norm``: the public functions.
- ``operator``: the operator and its backward operator, which allocate and launch.
- ``kernels``: the Triton kernels.
"""

from lightning_kernels._add_norm.add_norm import add_dropout_layer_norm, add_dropout_rms_norm

__all__ = ["add_dropout_layer_norm", "add_dropout_rms_norm"]
