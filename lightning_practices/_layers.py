"""Groups of layer classes that several packages use."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

# Batch norm and instance norm are subclasses of `_NormBase`.
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
