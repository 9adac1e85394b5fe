"""Batch normalisation, with the statistics of one process or of several processes.

- ``batch_norm``: the public function.
- ``operator``: the operator and its backward operator, which allocate and launch.
- ``kernels``: the Triton kernels.
- ``layout``: how a tensor is cut into programs and tiles.
- ``aten``: batch norm composed of torch's functions, and the checks of arguments.
- ``sync``: collectives, and batch norm over several processes composed of torch's functions.
"""

from lightning_kernels._batch_norm.batch_norm import batch_norm

__all__ = ["batch_norm"]
