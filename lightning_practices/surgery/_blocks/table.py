"""The sequence of blocks, which prints as a table."""

from collections.abc import Iterable, Sequence
from typing import overload

from rich.table import Table
from rich.text import Text
from typing_extensions import override

from lightning_practices._arguments import check_name, shown
from lightning_practices._names import module_name, plain_name
from lightning_practices._tables import as_text
from lightning_practices.surgery._blocks.block import Block
from lightning_practices.surgery._blocks.names import is_within, unknown


class Blocks(Sequence[Block]):
    """The blocks of a model, starting with the head. ``print`` shows them as a table.

    Args:
        blocks: The blocks in the order of their depth.
        sizes: Number of elements of all parameters of each block.
        notes: Sentences that the table ends in.

    Example:
        >>> from lightning_practices.surgery import blocks
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> print(blocks(model))
        ┏━━━━━━━┳━━━━━━━┳━━━━━┳━━━━━━━━━━━━┳━━━━━━━┓
        ┃ depth ┃ block ┃ and ┃ parameters ┃ share ┃
        ┡━━━━━━━╇━━━━━━━╇━━━━━╇━━━━━━━━━━━━╇━━━━━━━┩
        │ 0     │ 2     │ 1   │         18 │ 31.0% │
        │ 1     │ 0     │     │         40 │ 69.0% │
        └───────┴───────┴─────┴────────────┴───────┘
    """

    def __init__(
        self, blocks: Iterable[Block], sizes: Iterable[int], notes: Iterable[str] = ()
    ) -> None:
        self._blocks = tuple(blocks)
        self._sizes = tuple(sizes)
        self._notes = tuple(notes)

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Block, ...]: ...
    @override
    def __getitem__(self, index: int | slice) -> Block | tuple[Block, ...]:
        if isinstance(index, str):
            raise TypeError(
                f"blocks are numbered from the head, 0: for a name use blocks(...).of({index!r})"
            )
        return self._blocks[index]

    @override
    def __len__(self) -> int:
        return len(self._blocks)

    def of(self, name: str) -> Block:
        """Return the block that contains a module or parameter.

        Args:
            name: Name as in ``named_modules()`` or ``named_parameters()``, or a block's name.

        Raises:
            ValueError: If the name is unknown, or belongs to a module in several blocks.
        """
        plain = module_name(check_name("name", name))
        whole = [
            block
            for block in self._blocks
            if plain == block.name
            or any(is_within(plain, plain_name(part)) for part in block.modules)
            or plain in map(plain_name, block.parameters)
        ]
        if whole:
            return whole[0]
        parts = [
            block
            for block in self._blocks
            if any(is_within(plain_name(part), plain) for part in block.parameters)
        ]
        if len(parts) == 1:
            return parts[0]
        if parts:
            names = ", ".join(repr(block.name) for block in parts)
            raise ValueError(f"{shown(name)} is not in one block but in {len(parts)}: {names}")
        names_there = [
            plain_name(there)
            for block in self._blocks
            for there in (block.name, *block.modules, *block.parameters)
        ]
        raise ValueError(unknown("name", name, names_there))

    def __rich__(self) -> Table:
        table = Table("depth", "block", "and", caption=Text("\n".join(self._notes)) or None)
        table.add_column("parameters", justify="right")
        table.add_column("share", justify="right")
        total = max(sum(self._sizes), 1)
        for block, size in zip(self._blocks, self._sizes, strict=True):
            parts = [part for part in block.modules if part != block.name]
            parts += [
                part
                for part in block.parameters
                if not any(is_within(part, module) for module in block.modules)
            ]
            table.add_row(
                str(block.depth), Text(block.name), Text(", ".join(parts)), f"{size:,}",
                f"{size / total:.1%}",
            )  # fmt: skip
        for column in table.columns:
            column.overflow = "fold"
        return table

    @override
    def __str__(self) -> str:
        return as_text(self)

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(repr(block.name) for block in self._blocks)})"
