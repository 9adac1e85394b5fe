"""The report of nan and infinite gradients."""

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text
from typing_extensions import override

from lightning_practices._tables import as_text

_SHOWN = 20  # parameters in the table


@dataclass(frozen=True)
class NonFiniteParameter:
    """A parameter whose gradient has nan or infinite elements.

    Attributes:
        name: The parameter's name in the module.
        nan: The share of the gradient's elements that are nan.
        infinite: The share of the gradient's elements that are infinite.

    Example:
        >>> import contextlib
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import SkipNonFinite
        >>> module, skip = BoringModel(), SkipNonFinite(max_consecutive=1)
        >>> module.layer.bias.data.fill_(torch.inf)
        tensor([inf, inf])
        >>> trainer = Trainer(barebones=True, accelerator="cpu", max_steps=2, callbacks=[skip])
        >>> with contextlib.suppress(RuntimeError):
        ...     trainer.fit(module)
        >>> skip.report.parameters[0]
        NonFiniteParameter(name='layer.weight', nan=0.0, infinite=1.0)
    """

    name: str
    nan: float
    infinite: float

    @property
    def layer(self) -> str:
        """The name of the layer that the parameter belongs to."""
        return self.name.rpartition(".")[0] or "(the module itself)"


@dataclass(frozen=True, repr=False)
class NonFiniteReport:
    """A report of the parameters with nan or infinite gradients; ``print`` shows a table.

    Attributes:
        parameters: The parameters with nan or infinite gradients, in the module's order.
        finite: The number of parameters with finite gradients.

    Example:
        >>> import contextlib
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import SkipNonFinite
        >>> module, skip = BoringModel(), SkipNonFinite(max_consecutive=1)
        >>> module.layer.bias.data.fill_(torch.inf)
        tensor([inf, inf])
        >>> trainer = Trainer(barebones=True, accelerator="cpu", max_steps=2, callbacks=[skip])
        >>> with contextlib.suppress(RuntimeError):
        ...     trainer.fit(module)
        >>> skip.report, skip.report.first_layer
        (NonFiniteReport(2 non-finite, 0 finite), 'layer')
    """

    parameters: tuple[NonFiniteParameter, ...]
    finite: int

    @property
    def first_layer(self) -> str:
        """The first layer with a nan or infinite gradient, in the module's order."""
        return self.parameters[0].layer

    @property
    def last_layer(self) -> str:
        """The last layer with a nan or infinite gradient; backward mostly reaches it first."""
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
            f"{len(self.parameters)} of {total} parameters: in the module's order the first layer"
            f" is {self.first_layer}, and the last, which the backward pass mostly comes to first,"
            f" {self.last_layer}."
        )
