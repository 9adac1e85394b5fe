"""Batch normalisation, of one process' batch or of the batches of several processes.

- ``batch_norm``: the public function.
- ``operator``: the operator and its backward operator, which allocate and launch.
- ``kernels``: the Triton kernels.
- ``layout``: how a tensor is cut into programs and tiles.
- ``aten``: the composition of torch's functions, and the checks.
- ``sync``: collectives, and the composition for several processes.
"""

from lightning_kernels._batch_norm.batch_norm import batch_norm

__all__ = ["batch_norm"]
