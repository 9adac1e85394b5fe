"""Fused training kernels for PyTorch; no dependency on Lightning."""

from lightning_kernels._activation import Activation
from lightning_kernels._batch_norm import batch_norm
from lightning_kernels._dispatch import Route, route
from lightning_kernels._dropout import alpha_dropout, dropout
from lightning_kernels._layer_norm import layer_norm

__all__ = ["Activation", "Route", "alpha_dropout", "batch_norm", "dropout", "layer_norm", "route"]
