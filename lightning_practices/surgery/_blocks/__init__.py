"""The blocks of a network, ordered by the number of layers between them and the output.

- ``block``: the class of a block.
- ``blocks``: find the blocks, by default or by the user's names.
- ``layers``: find the layers in the order of their registration.
- ``modules``: find the modules that lie entirely in one block.
- ``names``: find modules and parameters by the user's names.
- ``table``: the sequence of blocks, which prints as a table.
"""

from lightning_practices.surgery._blocks.block import Block
from lightning_practices.surgery._blocks.blocks import blocks
from lightning_practices.surgery._blocks.layers import AUXILIARY, is_list, is_scale
from lightning_practices.surgery._blocks.names import found, is_within, names_of
from lightning_practices.surgery._blocks.table import Blocks

__all__ = [
    "AUXILIARY",
    "Block",
    "Blocks",
    "blocks",
    "found",
    "is_list",
    "is_scale",
    "is_within",
    "names_of",
]
