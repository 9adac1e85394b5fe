"""DropBlock in two and three dimensions.

- ``drop_block``: the public functions.
- ``operator``: the operator and its backward operator, which allocate and launch.
- ``kernels``: the Triton kernels: the first draws the mask, the second applies it.
- ``layout``: how the mask is packed into words of bits, and how the work is cut into programs.
- ``aten``: DropBlock composed of torch's functions.
"""

from lightning_kernels._drop_block.drop_block import drop_block2d, drop_block3d

__all__ = ["drop_block2d", "drop_block3d"]
