"""Fuse the layers and blocks of a model, and undo it.

``fuse``: replace layers, fold blocks, and report what was skipped and why.
``refusals``: why a module gets no fused class.
``twins``: the fused class of each layer and block, and the registration of custom blocks.
``timm_layers``: the fused classes of timm's layers.
``transformers_forms``: the source code by which classes of transformers are known.
``transformers_layers``: the fused forwards of transformers' norms and stochastic depths.
``transformers_convolutions``: those of its blocks of convolution, norm and activation.
``branch_ends``: the ends of branches of transformers' blocks, in one call each.
``transformers_post_norm``, ``transformers_decoders``, ``transformers_encoders``: the fused forwards
of these blocks.
``classes``: changes of a module's class, and back.
``measure``: keep the fused layers that are faster, by ``uses`` (what each layer gets in a step),
``agreement`` (comparisons with torch's layers), ``race`` (timing), ``routes`` (kept times) and
``tensors`` (the tensors of a call).
``report``: the changes, as a table.
"""

from lightning_practices.surgery._fuse.fuse import fuse, unfuse
from lightning_practices.surgery._fuse.measure import measure_fused
from lightning_practices.surgery._fuse.report import Folded, Measured, Replaced, Report, Skipped
from lightning_practices.surgery._fuse.twins import register_block

__all__ = [
    "Folded",
    "Measured",
    "Replaced",
    "Report",
    "Skipped",
    "fuse",
    "measure_fused",
    "register_block",
    "unfuse",
]
