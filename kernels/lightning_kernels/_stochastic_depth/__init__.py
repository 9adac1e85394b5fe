"""Stochastic depth.

- ``stochastic_depth``: the public function.
- ``operator``: the operator and its backward operator, which allocate and launch.
- ``kernels``: the Triton kernels.
"""

from lightning_kernels._stochastic_depth.stochastic_depth import stochastic_depth

__all__ = ["stochastic_depth"]
