"""Values by optimizer step, in bounded memory."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

EPOCH = "epoch"  # the name of the series that counts finished epochs
MOST_BINS = 1000  # bins in a series; a picture is hardly more pixels wide
_MOST_PENDING = 4096  # values that may wait on the device, half a kilobyte each


class Point(NamedTuple):
    """A value, and the optimizer steps taken when it was seen."""

    step: int
    value: float


class Bin(NamedTuple):
    """A summary of consecutive values.

    Attributes:
        step: The mean of the values' optimizer steps.
        mean: The mean of the finite values; nan if there is none, as are ``low`` and ``high``.
        low: The lowest finite value.
        high: The highest finite value.
        finite: The number of finite values.
        total: The number of values.
    """

    step: float
    mean: float
    low: float
    high: float
    finite: int
    total: int


class Series:
    """The values of one name.

    Each of the first thousand values is a bin of its own. Whenever there are a thousand bins, each
    two neighbours are merged into one. So a series has at most 1000 bins, and a long series at
    least 500. All bins but the last hold equally many values.

    Attributes:
        stepwise: Whether the values are those of single training steps, and so noisy.
        bins: The bins, in the order of their values.
        width: The number of values in a bin.
        last: The last value, finite or not.
        lowest: The lowest finite value; its first occurrence.
        highest: The highest finite value; its first occurrence.
        not_finite: The number of infinite and nan values.
    """

    def __init__(self, stepwise: bool = False) -> None:
        self.stepwise = stepwise
        self.bins: list[Bin] = []
        self.width = 1
        self.last: Point | None = None
        self.lowest: Point | None = None
        self.highest: Point | None = None
        self.not_finite = 0

    def add(self, step: int, value: float) -> None:
        """Add a value, unless the last value has the same step and is equal."""
        point = Point(step, value)
        if point == self.last:
            return
        self.last = point
        if math.isfinite(value):
            if self.lowest is None or value < self.lowest.value:
                self.lowest = point
            if self.highest is None or value > self.highest.value:
                self.highest = point
            new = Bin(step, value, value, value, 1, 1)
        else:
            self.not_finite += 1
            new = Bin(step, math.nan, math.nan, math.nan, 0, 1)
        if self.bins and self.bins[-1].total < self.width:
            self.bins[-1] = _merged(self.bins[-1], new)
        else:
            self.bins.append(new)
        if len(self.bins) == MOST_BINS and self.bins[-1].total == self.width:
            pairs = zip(self.bins[::2], self.bins[1::2], strict=True)
            self.bins = [_merged(first, second) for first, second in pairs]
            self.width *= 2

    def points(self) -> list[tuple[int, float]]:
        """Return the step, rounded, and the mean of each bin."""
        return [(round(one.step), one.mean) for one in self.bins]

    def state_dict(self) -> dict[str, Any]:
        return {
            "stepwise": self.stepwise,
            "bins": torch.tensor(self.bins, dtype=torch.float64).reshape(-1, len(Bin._fields)),
            "width": self.width,
            "last": _listed(self.last),
            "lowest": _listed(self.lowest),
            "highest": _listed(self.highest),
            "not_finite": self.not_finite,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Self:
        series = cls(state["stepwise"])
        series.bins = [
            Bin(step, mean, low, high, int(finite), int(total))
            for step, mean, low, high, finite, total in state["bins"].tolist()
        ]
        series.width = state["width"]
        series.last = _point(state["last"])
        series.lowest = _point(state["lowest"])
        series.highest = _point(state["highest"])
        series.not_finite = state["not_finite"]
        return series


class History:
    """The series of a fit by name; values on a device stay there until they are needed."""

    def __init__(self) -> None:
        self._series: dict[str, Series] = {}
        self._pending: list[tuple[str, int, Tensor]] = []

    def add(self, name: str, step: int, value: Tensor | float, *, stepwise: bool = False) -> None:
        """Add a value; a tensor is copied, as it may be changed in place later."""
        if name not in self._series:
            self._series[name] = Series(stepwise)
        if not isinstance(value, Tensor):
            value = torch.tensor(value, dtype=torch.float64, device="cpu")
        self._pending.append((name, step, value.detach().reshape(()).clone()))
        if len(self._pending) >= _MOST_PENDING:
            self.flush()

    def flush(self) -> None:
        """Move waiting values into their series, in one copy for each device and dtype."""
        pending, self._pending = self._pending, []
        kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for i, (_, _, value) in enumerate(pending):
            kinds.setdefault((value.device, value.dtype), []).append(i)
        numbers = [0.0] * len(pending)
        for places in kinds.values():
            values = torch.stack([pending[i][2] for i in places]).tolist()
            for i, number in zip(places, values, strict=True):
                numbers[i] = number
        for (name, step, _), number in zip(pending, numbers, strict=True):
            self._series[name].add(step, number)

    def series(self) -> dict[str, Series]:
        """Return the series that have a value, by name, in the order of their first values."""
        self.flush()
        return {name: series for name, series in self._series.items() if series.bins}

    def state_dict(self) -> dict[str, Any]:
        return {name: series.state_dict() for name, series in self.series().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._pending = []
        self._series = {name: Series.from_state_dict(one) for name, one in state.items()}


def _merged(a: Bin, b: Bin) -> Bin:
    total, finite = a.total + b.total, a.finite + b.finite
    step = a.step + (b.step - a.step) * (b.total / total)
    if not a.finite or not b.finite:
        _, mean, low, high, _, _ = b if b.finite else a
        return Bin(step, mean, low, high, finite, total)
    mean = a.mean + (b.mean - a.mean) * (b.finite / finite)
    return Bin(step, mean, min(a.low, b.low), max(a.high, b.high), finite, total)


def _listed(point: Point | None) -> list[float] | None:
    return None if point is None else list(point)


def _point(numbers: list[float] | None) -> Point | None:
    return None if numbers is None else Point(int(numbers[0]), float(numbers[1]))
