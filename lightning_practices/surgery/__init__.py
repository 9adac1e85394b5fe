"""Surgery: change the layers of a model in place, and say what was changed."""

from lightning_practices.surgery._accelerate import accelerate, restore
from lightning_practices.surgery._block import Block
from lightning_practices.surgery._blocks import blocks
from lightning_practices.surgery._blocks_table import Blocks
from lightning_practices.surgery._drop_top import drop_top
from lightning_practices.surgery._freeze import freeze, unfreeze
from lightning_practices.surgery._input_transform import input_transform
from lightning_practices.surgery._parametrize import parametrize, unparametrize
from lightning_practices.surgery._recalibrate import recalibrate_batch_norm
from lightning_practices.surgery._replace_head import feature_extractor, replace_head
from lightning_practices.surgery._report import Folded, Replaced, Report, Skipped
from lightning_practices.surgery._share_layers import share_layers

__all__ = [
    "Block",
    "Blocks",
    "Folded",
    "Replaced",
    "Report",
    "Skipped",
    "accelerate",
    "blocks",
    "drop_top",
    "feature_extractor",
    "freeze",
    "input_transform",
    "parametrize",
    "recalibrate_batch_norm",
    "replace_head",
    "restore",
    "share_layers",
    "unfreeze",
    "unparametrize",
]
