"""Fused forwards of known blocks, one file for each library module that defines such blocks.

``block``: the base class, and the check that a block's code is the known version.
``sequential``: any :class:`torch.nn.Sequential` with a norm directly before an activation.
``steps``: the base class of blocks that call one child after another.
``resnet``, ``densenet``, ``googlenet``, ``inception``, ``vision_transformer``: torchvision's
blocks.
``pre_norm``: the base class of blocks whose branches begin with a norm.
``layer_getter``: torchvision's backbones of detection and segmentation.
``timm_resnet``, ``timm_norm_act``, ``timm_convolutions``, ``timm_transformers``: timm's blocks.
``monai_resnet``: MONAI's residual networks.
``transformers_activations``: transformers' activations, for the blocks of all libraries.
"""

import sys
from importlib import import_module
from typing import Any

from torch import nn

from lightning_practices.nn._fused_layer import FUSED_FROM, LEFT
from lightning_practices.nn._hooks import is_touched
from lightning_practices.nn._norm_activation import norm_call
from lightning_practices.nn._residual import (
    ADD_NORMS,
    AddNorm,
    add_layer_norm,
    add_norm_call,
    add_rms_norm,
    drop_add_norm,
)
from lightning_practices.nn.blocks.block import (
    DECIDING,
    Chain,
    FusedBlock,
    fingerprint,
    folds_of,
    unknown_method,
)
from lightning_practices.nn.blocks.sequential import Sequential
from lightning_practices.nn.blocks.steps import Steps

__all__ = [
    "ADD_NORMS",
    "DECIDING",
    "FUSED_FROM",
    "LEFT",
    "AddNorm",
    "Chain",
    "FusedBlock",
    "Sequential",
    "Steps",
    "add_layer_norm",
    "add_norm_call",
    "add_rms_norm",
    "drop_add_norm",
    "fingerprint",
    "folds_of",
    "fused_blocks",
    "is_touched",
    "norm_call",
    "unknown_method",
]

# File with the fused blocks of each library module. If a model has such a block, its module has
# been imported.
_FILES = {
    "torchvision.models.resnet": "resnet",
    "torchvision.models.densenet": "densenet",
    "torchvision.models.googlenet": "googlenet",
    "torchvision.models.inception": "inception",
    "torchvision.models.vision_transformer": "vision_transformer",
    "timm.models.resnet": "timm_resnet",
    "torchvision.models._utils": "layer_getter",
    "timm.layers.norm_act": "timm_norm_act",
    "timm.models.vision_transformer": "timm_transformers",
    "timm.models": "timm_convolutions",
    "transformers.activations": "transformers_activations",
    "monai.networks.nets.resnet": "monai_resnet",
}


def fused_blocks() -> dict[type[nn.Module], type[FusedBlock]]:
    """Return the fused class of each known block whose library module has been imported."""
    blocks: dict[type[nn.Module], type[FusedBlock]] = {nn.Sequential: Sequential}
    for module, file in _FILES.items():
        if module in sys.modules:
            ours = import_module(f"{__name__}.{file}")
            defined = [cls for cls in vars(ours).values() if isinstance(cls, type)]
            own: list[Any] = [cls for cls in defined if cls.__module__ == ours.__name__]
            blocks |= {cls.original: cls for cls in own}
    return blocks
