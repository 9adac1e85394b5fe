"""What surgery did to a model, for people to read."""

from dataclasses import dataclass, field
from textwrap import wrap

from rich.table import Table
from rich.text import Text
from typing_extensions import override

from lightning_practices._tables import as_text

_REASON_WIDTH = 40


@dataclass(frozen=True)
class Replaced:
    """A layer that was swapped.

    Attributes:
        names: Every name that the model has for the layer, more than one if it is shared.
        before: Class whose ``forward`` the layer ran.
        after: Class whose ``forward`` the layer runs now, or the forward that was registered.
    """

    names: tuple[str, ...]
    before: str
    after: str


@dataclass(frozen=True)
class Folded:
    """A norm that is one call with the operations behind it.

    Attributes:
        names: Every name that the model has for the norm.
        block: Class of the block that runs it.
        chain: The operations that are one call, such as ``"BatchNorm2d + add + ReLU"``.
    """

    names: tuple[str, ...]
    block: str
    chain: str


@dataclass(frozen=True)
class Skipped:
    """A layer or block that was left alone.

    Attributes:
        names: Every name that the model has for the layer.
        cls: Its class.
        reason: Why it was left alone. For a block, and for a norm that its block can't fold, this
            begins with ``"not folded:"``.
    """

    names: tuple[str, ...]
    cls: str
    reason: str


@dataclass(repr=False)
class Report:
    """What was replaced, folded and skipped; ``print`` it for a table.

    Attributes:
        replaced: The layers swapped, in the model's order.
        folded: The norms that are one call with the operations behind them, in the model's order.
        skipped: The layers that were left alone, then the blocks and norms that are not folded.
    """

    replaced: list[Replaced] = field(default_factory=list)
    folded: list[Folded] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def __rich__(self) -> Table | Text:
        if not (self.replaced or self.folded or self.skipped):
            return Text("Nothing to replace.")
        table = Table("module", "before")
        table.add_column(
            "after, or why it was skipped", no_wrap=True
        )  # the other columns are wrapped
        for layer in self.replaced:
            table.add_row(_cell(layer.names), Text(layer.before), Text(layer.after))
        for fold in self.folded:
            chain = wrap(f"folded: {fold.chain}", _REASON_WIDTH)
            table.add_row(_cell(fold.names), Text(fold.block), Text("\n".join(chain)))
        for left in self.skipped:
            why = wrap(f"skipped: {left.reason}", _REASON_WIDTH)
            table.add_row(_cell(left.names), Text(left.cls), Text("\n".join(why)))
        for column in table.columns:
            column.overflow = "fold"
        return table

    @override
    def __str__(self) -> str:
        return as_text(self)

    @override
    def __repr__(self) -> str:
        counts = (self.replaced, "replaced"), (self.folded, "folded"), (self.skipped, "skipped")
        text = ", ".join(f"{len(entries)} {what}" for entries, what in counts)
        return f"{type(self).__name__}({text})"


def _cell(names: tuple[str, ...]) -> Text:
    return Text("\n".join(name or "(the model itself)" for name in names))
