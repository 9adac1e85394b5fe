"""Dropout of elements and of channels, and dropout with an activation.

- ``dropout``: ``dropout`` and ``alpha_dropout``, with their kernel and operator.
- ``channel_dropout``: ``dropout1d``, ``dropout2d``, ``dropout3d`` and ``feature_alpha_dropout``.
- ``dropout_activation``: bias, activation and dropout in one pass.
"""

from lightning_kernels._dropout.channel_dropout import (
    dropout1d,
    dropout2d,
    dropout3d,
    feature_alpha_dropout,
)
from lightning_kernels._dropout.dropout import alpha_dropout, dropout, dropout_operator
from lightning_kernels._dropout.dropout_activation import dropout_activation

__all__ = [
    "alpha_dropout",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_activation",
    "dropout_operator",
    "feature_alpha_dropout",
]
