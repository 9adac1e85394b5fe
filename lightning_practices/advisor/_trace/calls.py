"""Calls of functions on tensors, and the values between them."""

import linecache
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_practices.advisor._kinds import LAYERS, PASSED

_LONGEST = 12  # lines of a call in the source
_BLOCK = 1 << 18  # elements that are measured at once on a CPU, so that they stay in its cache


class Statistics(NamedTuple):
    """Statistics of a tensor's finite elements.

    Attributes:
        mean: Their mean.
        std: Their standard deviation.
        low: The least.
        high: The greatest.
        finite: Share of the elements that are finite.
        zero: Share of the elements that are 0.
    """

    mean: float
    std: float
    low: float
    high: float
    finite: float
    zero: float

    @property
    def root_mean_square(self) -> float:
        """Return the root mean square."""
        return float((self.mean**2 + self.std**2) ** 0.5)

    @classmethod
    def of(cls, x: Tensor) -> "Statistics":
        """Measure a tensor; all are nan for an empty one."""
        wide = x.detach()
        wide = wide.abs() if wide.is_complex() else wide
        wide = wide.to_dense() if wide.is_sparse else wide
        wide = wide if wide.dtype == torch.float64 else wide.float()
        total, nan = wide.numel(), float("nan")
        if not total:
            return cls(nan, nan, nan, nan, nan, 0.0)
        mean, std, low, high, zero = _measured(wide)
        if math.isfinite(low) and math.isfinite(high):  # which nan and inf reach too
            return cls(mean, std, low, high, 1.0, zero)
        kept = wide[torch.isfinite(wide)]
        if not kept.numel():
            return cls(nan, nan, nan, nan, 0.0, 0.0)
        mean, std, low, high, zero = _measured(kept)
        return cls(mean, std, low, high, kept.numel() / total, zero)


def _measured(x: Tensor) -> list[float]:
    """Return mean, standard deviation, least, greatest, and the share of zeros."""
    low, high = x.aminmax()
    mean = x.mean()
    size = min(_BLOCK, x.numel()) if x.device.type == "cpu" else x.numel()
    memory = x.new_empty(size)
    squares, zeros = [], []
    for block in torch.split(x.reshape(-1), size):
        # torch.std_mean and torch.count_nonzero take many times as long on a CPU.
        work = memory[: len(block)]
        squares.append(torch.sub(block, mean, out=work).square_().sum())
        zeros.append(torch.eq(block, 0, out=work).sum())
    measured: list[float] = torch.stack([low, high, mean, *squares, *zeros]).tolist()
    least, most, average, *sums = measured
    variance, zero = (
        sum(each) / x.numel() for each in (sums[: len(squares)], sums[len(squares) :])
    )
    return [average, math.sqrt(variance) if least != most else 0.0, least, most, zero]


@dataclass(eq=False)
class Value:
    """A tensor of a step.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        requires_grad: Whether it is differentiable.
        call: The call that made it; ``None`` for one that came from outside.
        source: Where one without a call comes from: ``"batch[0]"``, ``"parameter net.0.weight"``,
            ``"buffer net.1.running_mean"``, or ``"constant"``.
        depth: The number of layers with parameters on the longest way from the batch to it.
        is_data: Whether it depends on the batch.
        statistics: Of its elements, where the recorder has measured them.
        variation: Standard deviation along the first dimension, which is that of the samples in
            most programs, as a root mean square over the others; measured where ``statistics`` are.
        tensor: The tensor, where the recorder keeps it: arguments of losses, inputs of first
            layers, constants of one element, and the batch. Detached.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool = False
    call: "Call | None" = None
    source: str | None = None
    depth: int = 0
    is_data: bool = False
    statistics: Statistics | None = None
    variation: float | None = None
    tensor: Tensor | None = field(default=None, repr=False)

    @property
    def parameter(self) -> str | None:
        """The name of the parameter that it is, or ``None``."""
        prefix, _, name = (self.source or "").partition(" ")
        return name if prefix == "parameter" else None

    def origin(self) -> "Value":
        """Return the value before views, casts and copies, which hold the same elements."""
        value = self
        while value.call is not None and value.call.name in PASSED:
            inputs = value.call.inputs
            if not inputs or (value.call.name == "__get__" and len(inputs) != 1):
                break
            value = inputs[0]
        return value

    def maker(self) -> "Call | None":
        """Return the call that made its elements, before views, casts and copies."""
        return self.origin().call

    def before(self) -> Iterator["Call"]:
        """Yield the calls on which it depends, each once, the nearest first."""
        waiting, seen = [self], {id(self)}
        while waiting:
            call = waiting.pop(0).call
            if call is None or id(call) in seen:
                continue
            seen.add(id(call))
            yield call
            for value in call.inputs:
                if id(value) not in seen:
                    seen.add(id(value))
                    waiting.append(value)


@dataclass(eq=False)
class Call:
    """A call of a function.

    Attributes:
        name: Name of the function, without the underscore of in-place functions: ``"softmax"``.
            Clamps and rectifiers have the names ``"clamp"`` and ``"relu"`` and the arguments of
            these functions, whichever functions they are written by.
        args: Positional arguments, with a :class:`Value` in place of each tensor.
        kwargs: Arguments by keyword, in the same way.
        module: Name of the innermost module that runs; ``""`` for the LightningModule.
        stack: Names of the modules that run, the outermost first.
        line: The user's line that leads to the call, as ``"model.py:12"``.
        outputs: The tensors that it returns.
        index: Its place among the calls of the step.
        path: The file of ``line``.
        written: Name of the function that was called, where it differs from ``name``.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    module: str
    stack: tuple[str, ...]
    line: str
    index: int
    path: str = ""
    written: str = ""
    outputs: list[Value] = field(default_factory=list, repr=False)

    @cached_property  # as are the next two: rules ask many times, and arguments stay as they are
    def inputs(self) -> list[Value]:
        """The tensors among the arguments, in their order. The list is not for changing."""
        return [x for x in tree_leaves((self.args, self.kwargs)) if isinstance(x, Value)]

    @property
    def output(self) -> Value:
        """The first tensor that it returns."""
        return self.outputs[0]

    @cached_property
    def parameters(self) -> list[str]:
        """The names of the parameters among the arguments, also those that views or casts hold."""
        return [name for x in self.inputs if (name := x.origin().parameter) is not None]

    @property
    def is_layer(self) -> bool:
        """Whether it is a layer with parameters."""
        return self.name in LAYERS and bool(self.parameters)

    @property
    def text(self) -> str:
        """The source from the user's line to the end of the call; empty if it can't be read."""
        number = int(self.line.rpartition(":")[2] or 0)
        text = ""
        for following in range(number, number + _LONGEST):
            text += linecache.getline(self.path, following)
            if text.count("(") <= text.count(")"):
                break
        return text

    @cached_property
    def data(self) -> list[Value]:
        """The arguments that depend on the batch."""
        return [x for x in self.inputs if x.is_data]

    def get(self, place: int, name: str, default: Any = None) -> Any:
        """Return an argument by its place or its name."""
        return self.kwargs.get(name, self.args[place] if len(self.args) > place else default)

    def __str__(self) -> str:
        where = f" in {self.module}" if self.module else ""
        return f"{self.written or self.name}{where}" + (f" ({self.line})" if self.line else "")
