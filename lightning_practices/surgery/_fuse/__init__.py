"""Fuse the layers and blocks of a model, and undo it.

``fuse``: replace layers, fold blocks, and report what was skipped and why.
``twins``: the fused class of each layer and block, and the registration of custom blocks.
``timm_layers``: the fused classes of timm's layers.
``transformers_layers``: the fused forwards of transformers' layers, known by their source code.
``transformers_convolutions``: those of its blocks of convolution, norm and activation.
``report``: the changes, as a table.
"""

from lightning_practices.surgery._fuse.fuse import fuse, unfuse
from lightning_practices.surgery._fuse.report import Folded, Replaced, Report, Skipped
from lightning_practices.surgery._fuse.twins import register_block

__all__ = ["Folded", "Replaced", "Report", "Skipped", "fuse", "register_block", "unfuse"]
