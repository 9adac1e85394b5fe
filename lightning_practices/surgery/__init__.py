"""Surgery: change the layers of a model in place.

- ``_fuse``: replace layers and blocks by fused counterparts, and undo this.
- ``_blocks``: the blocks of a network by depth, which the other functions accept.
- ``_transfer``: freeze, replace the head, remove the top, share layers, transform inputs.
- ``_parametrize``: weight norm and spectral norm.
- ``_swap_activation``: replace the activations, with weights and dropout that fit.
- ``_recalibrate``: recompute the statistics of batch norms for the final weights.
"""

from lightning_practices.surgery._blocks import Block, Blocks, blocks
from lightning_practices.surgery._fuse import (
    Folded,
    Measured,
    Replaced,
    Report,
    Skipped,
    fuse,
    measure_fused,
    register_block,
    unfuse,
)
from lightning_practices.surgery._parametrize import Parametrization, parametrize, unparametrize
from lightning_practices.surgery._recalibrate import recalibrate_batch_norm
from lightning_practices.surgery._swap_activation import (
    SwappedLayer,
    SwapReport,
    swap_activation,
)
from lightning_practices.surgery._transfer import (
    feature_extractor,
    freeze,
    input_transform,
    remove_top_blocks,
    replace_head,
    share_layers,
    unfreeze,
)

__all__ = [
    "Block",
    "Blocks",
    "Folded",
    "Measured",
    "Parametrization",
    "Replaced",
    "Report",
    "Skipped",
    "SwapReport",
    "SwappedLayer",
    "blocks",
    "feature_extractor",
    "freeze",
    "fuse",
    "input_transform",
    "measure_fused",
    "parametrize",
    "recalibrate_batch_norm",
    "register_block",
    "remove_top_blocks",
    "replace_head",
    "share_layers",
    "swap_activation",
    "unfreeze",
    "unfuse",
    "unparametrize",
]
