"""Group norm and instance norm.

- ``group_norm``, ``instance_norm``: the public functions.
- ``operator``: the operator and its backward operator, which allocate and launch.
- ``kernels``: the Triton kernels.
- ``layout``: how a tensor is cut into slabs, blocks and tiles.
- ``aten``: group norm by torch's function.
"""

from lightning_kernels._group_norm.group_norm import group_norm
from lightning_kernels._group_norm.instance_norm import instance_norm

__all__ = ["group_norm", "instance_norm"]
