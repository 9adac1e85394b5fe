"""Kinds of layers that several rooms tell apart."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

# Batch norm and instance norm derive from `_NormBase`.
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
