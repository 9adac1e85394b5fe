"""Surgery: change the layers of a model in place, and say what was changed."""

from lightning_practices.surgery._blocks.block import Block
from lightning_practices.surgery._blocks.blocks import blocks
from lightning_practices.surgery._blocks.table import Blocks
from lightning_practices.surgery._fuse.fuse import fuse, unfuse
from lightning_practices.surgery._fuse.report import Folded, Replaced, Report, Skipped
from lightning_practices.surgery._parametrize import parametrize, unparametrize
from lightning_practices.surgery._recalibrate import recalibrate_batch_norm
from lightning_practices.surgery._transfer.freeze import freeze, unfreeze
from lightning_practices.surgery._transfer.input_transform import input_transform
from lightning_practices.surgery._transfer.remove_top_blocks import remove_top_blocks
from lightning_practices.surgery._transfer.replace_head import feature_extractor, replace_head
from lightning_practices.surgery._transfer.share_layers import share_layers

__all__ = [
    "Block",
    "Blocks",
    "Folded",
    "Replaced",
    "Report",
    "Skipped",
    "blocks",
    "feature_extractor",
    "freeze",
    "fuse",
    "input_transform",
    "parametrize",
    "recalibrate_batch_norm",
    "remove_top_blocks",
    "replace_head",
    "share_layers",
    "unfreeze",
    "unfuse",
    "unparametrize",
]
