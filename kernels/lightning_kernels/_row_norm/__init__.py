"""Layer norm and RMS norm, which normalise rows.

- ``layer_norm``, ``rms_norm``: the public functions.
- ``operator``: the operator of both norms, and the positions of rows in memory.
- ``kernels``: the Triton kernels.
"""

from lightning_kernels._row_norm.layer_norm import layer_norm
from lightning_kernels._row_norm.operator import row_norm_gradients
from lightning_kernels._row_norm.rms_norm import rms_norm

__all__ = ["layer_norm", "rms_norm", "row_norm_gradients"]
