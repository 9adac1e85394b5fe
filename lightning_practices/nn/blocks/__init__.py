"""Known blocks with fused forwards, one file for each module that defines some.

``block``: what they share, and how another version of a block's code is noticed.
``sequential``: any :class:`torch.nn.Sequential` with a norm and an activation behind it.
``resnet``, ``densenet``, ``googlenet``, ``inception``, ``vision_transformer``: torchvision's.
``timm_resnet``, ``timm_norm_act``: timm's.
"""

import sys
from importlib import import_module
from typing import Any

from torch import nn

from lightning_practices.nn._norm_activation import norm_call
from lightning_practices.nn.blocks.block import (
    Chain,
    FusedBlock,
    fingerprint,
    folds_of,
    unknown_method,
)
from lightning_practices.nn.blocks.sequential import Sequential

__all__ = [
    "Chain",
    "FusedBlock",
    "Sequential",
    "fingerprint",
    "folds_of",
    "fused_blocks",
    "norm_call",
    "unknown_method",
]

# The file for each module that defines blocks. A model with one of them has imported its module.
_FILES = {
    "torchvision.models.resnet": "resnet",
    "torchvision.models.densenet": "densenet",
    "torchvision.models.googlenet": "googlenet",
    "torchvision.models.inception": "inception",
    "torchvision.models.vision_transformer": "vision_transformer",
    "timm.models.resnet": "timm_resnet",
    "timm.layers.norm_act": "timm_norm_act",
}


def fused_blocks() -> dict[type[nn.Module], type[FusedBlock]]:
    """Return the fused class of each known block whose library has been imported."""
    blocks: dict[type[nn.Module], type[FusedBlock]] = {nn.Sequential: Sequential}
    for module, file in _FILES.items():
        if module in sys.modules:
            ours = import_module(f"{__name__}.{file}")
            defined = [cls for cls in vars(ours).values() if isinstance(cls, type)]
            own: list[Any] = [cls for cls in defined if cls.__module__ == ours.__name__]
            blocks |= {cls.original: cls for cls in own}
    return blocks
