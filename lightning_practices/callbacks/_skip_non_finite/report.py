"""Which gradients were nan or infinite, for people to read."""

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text
from typing_extensions import override

from lightning_practices._tables import as_text

_SHOWN = 20  # parameters in the table


@dataclass(frozen=True)
class NonFiniteParameter:
    """A parameter of whose gradient some elements are nan or infinite.

    Attributes:
        name: Its name in the module.
        nan: Share of the elements that are nan.
        infinite: Share of the elements that are infinite.
    """

    name: str
    nan: float
    infinite: float

    @property
    def layer(self) -> str:
        """Name of the layer that it is of."""
        return self.name.rpartition(".")[0] or "(the module itself)"


@dataclass(frozen=True, repr=False)
class NonFiniteReport:
    """The parameters whose gradients were nan or infinite; ``print`` it for a table.

    Attributes:
        parameters: These, in the module's order.
        finite: How many others had gradients without any.
    """

    parameters: tuple[NonFiniteParameter, ...]
    finite: int

    @property
    def first_layer(self) -> str:
        """The first of their layers in the module's order, mostly that of the forward pass."""
        return self.parameters[0].layer

    @property
    def last_layer(self) -> str:
        """The last of them, so mostly the first that the backward pass came to."""
        return self.parameters[-1].layer

    @override
    def __str__(self) -> str:
        return f"{self._in_a_line()}\n{as_text(self)}"

    def __rich__(self) -> Table:
        table = Table("parameter", "nan", "infinite")
        for p in self.parameters[:_SHOWN]:
            table.add_row(Text(p.name), f"{p.nan:.1%}", f"{p.infinite:.1%}")
        if len(self.parameters) > _SHOWN:
            table.add_row(f"and {len(self.parameters) - _SHOWN} more")
        table.columns[0].overflow = "fold"
        return table

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.parameters)} non-finite, {self.finite} finite)"

    def _in_a_line(self) -> str:
        total = len(self.parameters) + self.finite
        return (
            f"{len(self.parameters)} of {total} parameters: the first layer in the module's order"
            f" is {self.first_layer}, the first that the backward pass came to, the last in that"
            f" order, {self.last_layer}."
        )
