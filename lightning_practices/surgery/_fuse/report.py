"""Report of the changes that surgery made to a model."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from textwrap import wrap

from rich.table import Table
from rich.text import Text
from typing_extensions import override

from lightning_practices._tables import as_text, names_cell, widest
from lightning_practices.timing import Times

_REASON_WIDTH = 40  # characters
_BLOCK_WIDTH = 45  # characters; the name of torchvision's longest block has 41
_SHOWN = 2  # the most names of layers that are not served, for each class
_NAMES_WIDTH = 15  # the least width of the names of modules
_WIDTH = 90  # of a table's text, without its frame


@dataclass(frozen=True)
class Replaced:
    """A layer that was replaced.

    Attributes:
        names: All names of the layer in the model; a shared layer has several.
        before: Class whose ``forward`` ran before.
        after: Class whose ``forward`` runs now, or the name of the registered forward.

    Example:
        >>> from lightning_practices.surgery import fuse
        >>> report = fuse(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)))
        >>> report.replaced[0].names, report.replaced[0].before, report.replaced[0].after
        (('1',), 'torch.nn.LayerNorm', 'lightning_practices.nn.LayerNorm')
    """

    names: tuple[str, ...]
    before: str
    after: str


@dataclass(frozen=True)
class Folded:
    """A norm that is one call with the operations after it, or with an addition before it.

    Attributes:
        names: All names of the norm in the model.
        norm: Class of the norm, before it was fused.
        block: Class of the block that calls the norm.
        chain: The operations of the call, such as ``"BatchNorm2d + add + ReLU"`` or
            ``"add + LayerNorm"``.

    Example:
        >>> from lightning_practices.surgery import fuse
        >>> report = fuse(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
        >>> report.folded[0].names, report.folded[0].chain
        (('1',), 'BatchNorm2d + ReLU')
    """

    names: tuple[str, ...]
    norm: str
    block: str
    chain: str


@dataclass(frozen=True)
class Skipped:
    """A layer or block that was not changed.

    Attributes:
        names: All names of the layer in the model.
        cls: Class of the layer.
        reason: Why it was not changed. For a block, and for a norm that its block can't fold, the
            reason begins with ``"not folded:"``.

    Example:
        >>> from lightning_practices.surgery import fuse
        >>> class Norm(nn.LayerNorm):
        ...     def forward(self, x):
        ...         return super().forward(x) + 1
        >>> fuse(nn.Sequential(nn.Linear(8, 8), Norm(8))).skipped[0].reason
        'Norm overrides forward'
    """

    names: tuple[str, ...]
    cls: str
    reason: str


@dataclass(frozen=True)
class Measured:
    """The times of a layer's calls in one step, forward and backward.

    Attributes:
        names: All names of the layer in the model.
        call: The operations that were timed, such as ``"BatchNorm2d + add + ReLU"``.
        times: Seconds of the fused call and of torch's layers.

    Example:
        >>> from lightning_practices.surgery import fuse
        >>> report = fuse(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), torch.randn(4, 8))
        >>> report.measured[0].names, report.measured[0].call
        (('1',), 'LayerNorm')
    """

    names: tuple[str, ...]
    call: str
    times: Times


@dataclass(repr=False)
class Report:
    """The replaced, folded and skipped layers. ``print`` shows them as a table.

    ``repr`` counts them, as in ``Report(20 replaced, 17 folded, 0 skipped)``. If layers are not
    served, it ends in ``not served: 14 FrozenBatchNorm2d``.

    Attributes:
        replaced: The replaced layers, in the model's order.
        folded: The norms that are one call with other operations, in the model's order.
        skipped: The layers that were not changed, then the blocks and norms that are not folded.
        not_served: The layers without a fused class whose class is named for a norm or for dropout,
            in the model's order. The table has one row for each class.
        measured: The times of the layers that were measured, also of those that are skipped because
            torch's are not slower.
        step: The times of the whole step, with the fused layers that are left and with torch's;
            ``None`` if it was not measured.
        when_empty: The sentence that a report without entries prints.

    Example:
        >>> from lightning_practices.surgery import fuse
        >>> report = fuse(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)))
        >>> report
        Report(1 replaced, 0 folded, 0 skipped)
        >>> print(report)
        ┏━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓
        ┃ module ┃ before             ┃ after, or why it was skipped     ┃
        ┡━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┩
        │ 1      │ torch.nn.LayerNorm │ lightning_practices.nn.LayerNorm │
        └────────┴────────────────────┴──────────────────────────────────┘
    """

    replaced: list[Replaced] = field(default_factory=list)
    folded: list[Folded] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    not_served: list[Skipped] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    step: Times | None = None
    when_empty: str = field(default="Nothing to replace.", compare=False)

    def sort(self, names: Iterable[tuple[str, ...]]) -> None:
        """Sort replaced layers and folded norms by the names of all modules, in their order."""
        order = {name: place for place, aliases in enumerate(names) for name in aliases}
        self.replaced.sort(key=lambda layer: order[layer.names[0]])
        self.folded.sort(key=lambda fold: order[fold.names[0]])

    def count_not_served(self) -> str:
        """Return the classes of :attr:`not_served` with counts, as ``"14 FrozenBatchNorm2d"``."""
        counts = Counter(layer.cls.rpartition(".")[2] for layer in self.not_served)
        return ", ".join(f"{count} {name}" for name, count in counts.most_common())

    def __rich__(self) -> Table | Text:
        if not (self.replaced or self.folded or self.skipped or self.not_served):
            return Text(self.when_empty)
        table = Table("module", "before")
        # Reasons are wrapped to a narrow column; the other columns are folded where need be.
        table.add_column("after, or why it was skipped", no_wrap=True)
        for layer in self.replaced:
            pieces = [*wrap(layer.after, _BLOCK_WIDTH), *self._times_of(layer.names)]
            table.add_row(names_cell(layer.names), Text(layer.before), Text("\n".join(pieces)))
        for fold in self.folded:
            chain = wrap(f"folded: {fold.chain}, in {fold.block}", _BLOCK_WIDTH)
            chain += self._times_of(fold.names)
            table.add_row(names_cell(fold.names), Text(fold.norm), Text("\n".join(chain)))
        for left in self.skipped:
            why = wrap(f"skipped: {left.reason}", _REASON_WIDTH)
            table.add_row(names_cell(left.names), Text(left.cls), Text("\n".join(why)))
        for cls in dict.fromkeys(layer.cls for layer in self.not_served):
            alike = [layer for layer in self.not_served if layer.cls == cls]
            shown = [name for layer in alike[:_SHOWN] for name in layer.names]
            if len(alike) > _SHOWN:
                shown.append(f"and {len(alike) - _SHOWN} more")
            count = f"not served: {len(alike)} {cls.rpartition('.')[2]}"
            why = wrap(f"{count}, {alike[0].reason}", _REASON_WIDTH)
            table.add_row(names_cell(tuple(shown)), Text(cls), Text("\n".join(why)))
        for column in table.columns:
            column.overflow = "fold"
        if self.step is not None:
            table.caption = f"a step: {self.step}"
        names, before, after = (widest(column) for column in table.columns)
        room = _WIDTH - before - after
        if _NAMES_WIDTH <= room < names:  # only names of modules are folded, not those of classes
            table.columns[0].max_width, table.columns[1].no_wrap = room, True
        return table

    def _times_of(self, names: tuple[str, ...]) -> list[str]:
        return [str(layer.times) for layer in self.measured if layer.names == names]

    @override
    def __str__(self) -> str:
        return as_text(self)

    @override
    def __repr__(self) -> str:
        counts = (self.replaced, "replaced"), (self.folded, "folded"), (self.skipped, "skipped")
        text = ", ".join(f"{len(entries)} {what}" for entries, what in counts)
        if self.not_served:
            text += f", not served: {self.count_not_served()}"
        if self.step is not None:
            text += f", step {self.step.ratio:.2f}"
        return f"{type(self).__name__}({text})"
