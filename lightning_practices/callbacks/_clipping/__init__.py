"""Gradient clipping.

- ``gradient_clipping``: the callback.
- ``settings``: the checked arguments of the callback.
- ``clipper``: computes norms, clips and logs, for one optimizer at a time.
- ``state``: the counts and norms of past steps, which a checkpoint holds.
"""

from lightning_practices.callbacks._clipping.gradient_clipping import GradientClipping
from lightning_practices.callbacks._clipping.settings import ClippingAlgorithm

__all__ = ["ClippingAlgorithm", "GradientClipping"]
