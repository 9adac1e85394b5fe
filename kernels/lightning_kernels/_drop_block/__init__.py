"""DropBlock in two and three dimensions.

- ``drop_block``: the public functions.
- ``operator``: the operator and its backward operator, which allocate and launch.
- ``kernels``: the Triton kernels: one draws the mask, one applies it.
- ``layout``: how maps are cut into words of bits and into programs.
- ``aten``: the composition of torch's functions.
"""

from lightning_kernels._drop_block.drop_block import drop_block2d, drop_block3d

__all__ = ["drop_block2d", "drop_block3d"]
