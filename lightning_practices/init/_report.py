"""Report of the weights that were initialised."""

from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text
from typing_extensions import override

from lightning_practices._tables import as_text, names_cell, widest

_WIDTH = 100  # characters, of the whole table
_FRAME = 19  # of these for lines between the columns
_WHY_WIDTH = 22
_NAME_WIDTH = 20  # the least


@dataclass(frozen=True)
class Initialized:
    """A weight that has new values.

    Attributes:
        names: All names of the weight in the model; tied weights have several.
        cls: Class of its layer.
        scheme: The scheme, such as ``"kaiming_normal"``.
        activation: The activation after the layer, such as ``"leaky_relu(0.2)"``; ``"linear"`` for
            none, and an empty text where it plays no part.
        fan: The number by which the variance is divided; ``None`` if the scheme has none.
        gain: The factor of the standard deviation; ``None`` if the scheme has none.
        before: Standard deviation of the old values.
        after: Standard deviation of the new values.
        why: Why this scheme was chosen, and where the activation was read.

    Example:
        >>> from lightning_practices.init import initialize
        >>> model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3))
        >>> row = initialize(model).initialized[0]
        >>> row.names, row.scheme, row.activation, row.fan, round(row.gain, 2)
        (('0.weight',), 'kaiming_normal', 'relu', 16, 1.41)
    """

    names: tuple[str, ...]
    cls: str
    scheme: str
    activation: str
    fan: float | None
    gain: float | None
    before: float
    after: float
    why: str


@dataclass(frozen=True)
class Kept:
    """A parameter that was not changed.

    Attributes:
        names: All names of the parameter in the model.
        cls: Class of its layer.
        reason: Why it was not changed.

    Example:
        >>> from lightning_practices.init import initialize
        >>> model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3))
        >>> model[0].requires_grad_(False)
        Linear(in_features=16, out_features=64, bias=True)
        >>> initialize(model).kept[0]
        Kept(names=('0.weight',), cls='Linear', reason='frozen')
    """

    names: tuple[str, ...]
    cls: str
    reason: str


@dataclass(repr=False)
class InitReport:
    """The weights that were initialised and those that were kept. ``print`` shows them as a table.

    Attributes:
        initialized: The weights with new values, in the model's order.
        kept: The parameters of the chosen modules that were not changed.
        biases: Names of the biases that are 0 now, but for the forget gates of LSTMs and the
            learned keys and values of attention.
        norms: Names of the norms whose scales are 1, offsets 0, and running statistics new.
        zeroed: Names of the scales that are 0 now: the last norms of residual branches.
        when_empty: The sentence that a report without entries prints.

    Example:
        >>> from lightning_practices.init import initialize
        >>> model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3))
        >>> report = initialize(model)
        >>> report
        InitReport(2 initialized, 0 zeroed, 0 kept)
        >>> [row.scheme for row in report.initialized], report.biases
        (['kaiming_normal', 'xavier_normal'], ['0.bias', '2.bias'])
    """

    initialized: list[Initialized] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    biases: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    zeroed: list[str] = field(default_factory=list)
    when_empty: str = field(default="Nothing to initialise.", compare=False)

    def __rich__(self) -> Table | Text:
        if not (self.initialized or self.kept or self.norms):
            return Text(self.when_empty)
        table = Table("weight", "scheme", "fan", "gain", "std", "why")
        for row in self.initialized:
            table.add_row(
                names_cell(row.names), row.scheme, _number(row.fan), _number(row.gain),
                f"{_number(row.before)} to {_number(row.after)}",
                f"{row.activation}: {row.why}" if row.activation else row.why,
            )  # fmt: skip
        if self.zeroed:
            why = "the last norms of residual branches"
            table.add_row(names_cell(self.zeroed), "zeros", "", "", "", why)
        for reason in dict.fromkeys(kept.reason for kept in self.kept):
            names = [name for kept in self.kept if kept.reason == reason for name in kept.names]
            table.add_row(names_cell(names), "kept", "", "", "", reason)
        for column in table.columns:
            column.overflow = "fold"
        first, *others, _ = table.columns
        for column in others:
            column.no_wrap = True
        taken = sum(widest(column) for column in others) + _FRAME + _WHY_WIDTH
        first.max_width = max(_WIDTH - taken, _NAME_WIDTH)
        table.caption = f"biases set to 0: {len(self.biases)}, norms reset: {len(self.norms)}"
        return table

    @override
    def __str__(self) -> str:
        return as_text(self)

    @override
    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self.initialized)} initialized, {len(self.zeroed)} zeroed,"
            f" {len(self.kept)} kept)"
        )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
