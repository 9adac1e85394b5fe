"""The blocks of a network, ordered by the number of layers between them and the output.

- ``block``: the class of a block.
- ``blocks``: find the blocks, by default or by the user's names.
- ``division``: divide a network into layers.
- ``libraries``: what torchvision, timm and transformers declare about their networks.
- ``heads``: tell a head from a backbone by names and sizes, where no library declares it.
- ``sizes``: the sizes of layers.
- ``order``: run a model on an example, to see in which order it uses its layers.
- ``modules``: find the modules that lie entirely in one block.
- ``names``: find modules and parameters by the user's names.
- ``table``: the sequence of blocks, which prints as a table.
"""

from lightning_practices.surgery._blocks.block import Block
from lightning_practices.surgery._blocks.blocks import blocks
from lightning_practices.surgery._blocks.division import is_list, is_scale
from lightning_practices.surgery._blocks.heads import side_by_side
from lightning_practices.surgery._blocks.libraries import (
    Library,
    auxiliary_in,
    library_of,
)
from lightning_practices.surgery._blocks.names import found, is_within, names_of
from lightning_practices.surgery._blocks.order import in_evaluation, run
from lightning_practices.surgery._blocks.sizes import children_with_parameters, leaves, may_feed
from lightning_practices.surgery._blocks.table import Blocks

__all__ = [
    "Block",
    "Blocks",
    "Library",
    "auxiliary_in",
    "blocks",
    "children_with_parameters",
    "found",
    "in_evaluation",
    "is_list",
    "is_scale",
    "is_within",
    "leaves",
    "library_of",
    "may_feed",
    "names_of",
    "run",
    "side_by_side",
]
