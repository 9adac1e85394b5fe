"""Preprocessing that shifts and scales each feature, channel or pixel by itself."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_practices._arguments import check_listed, check_number
from lightning_practices.data._preprocessing.layout import Per
from lightning_practices.data._preprocessing.moments import Moments
from lightning_practices.data._preprocessing.preprocessing import Preprocessing

_CLOSE = 0.02  # to mean 0 and standard deviation 1, of data that count as standardised


class MeanSubtraction(Preprocessing):
    r"""Subtract the mean of the training split.

    .. math::
        y = x - \mu

    Sources: "Mean subtraction", lecture S1; lectures S0 and S3.

    Args:
        per: Which numbers share a mean, see :class:`Preprocessing`.

    Raises:
        ValueError: If ``per`` is unknown.

    Example:
        >>> from lightning_practices.data import MeanSubtraction
        >>> MeanSubtraction().fit(torch.tensor([[1.0], [3.0]]))(torch.tensor([[5.0]]))
        tensor([[3.]])
    """

    statistics = ("mean",)
    mean: Tensor

    @override
    def _solved(self, moments: Moments) -> dict[str, Tensor]:
        return {"mean": moments.mean}

    @override
    def _applied(self, x: Tensor) -> Tensor:
        return x - self._broadcast(self.mean, x)

    @override
    def _undone(self, x: Tensor) -> Tensor:
        return x + self._broadcast(self.mean, x)

    @override
    def _warn(self, moments: Moments) -> None:
        """Say nothing: constant columns become zero, as they should."""


class Standardize(Preprocessing):
    r"""Subtract the mean of the training split and divide by its standard deviation.

    .. math::
        y = \frac{x - \mu}{\sigma} \qquad \sigma^2 = \frac{1}{n} \sum_{i=1}^{n} (x_i - \mu)^2

    A column that is constant in the training split, up to the rounding of its dtype, is divided by
    1, as in scikit-learn's ``StandardScaler``; a warning counts such columns. Another warning says
    so if the data are standardised already.

    Sources: "Standardization", lecture S1 with table I; lectures S0 and S3.

    Args:
        per: Which numbers share a mean and a standard deviation, see :class:`Preprocessing`.

    Raises:
        ValueError: If ``per`` is unknown.

    Example:
        >>> from lightning_practices.data import Standardize
        >>> Standardize().fit(torch.tensor([[1.0], [3.0]]))(torch.tensor([[5.0]]))
        tensor([[3.]])
    """

    statistics = ("mean", "std")
    mean: Tensor
    std: Tensor

    @override
    def _solved(self, moments: Moments) -> dict[str, Tensor]:
        std = (moments.squares / moments.count).sqrt()
        return {"mean": moments.mean, "std": torch.where(moments.constant, 1.0, std)}

    @override
    def _applied(self, x: Tensor) -> Tensor:
        shifted = x - self._broadcast(self.mean, x)
        return shifted.div_(self._broadcast(self.std, x))  # in place, which halves the time

    @override
    def _undone(self, x: Tensor) -> Tensor:
        scaled = x * self._broadcast(self.std, x)
        return scaled.add_(self._broadcast(self.mean, x))

    @override
    def _warn(self, moments: Moments) -> None:
        super()._warn(moments)
        mean, std = moments.mean.abs().max(), (moments.squares / moments.count).sqrt()
        if mean <= _CLOSE and bool(((std - 1).abs() <= _CLOSE).all()) and moments.count > 1:
            warnings.warn(
                f"the data are standardised already: their means are within {float(mean):.2g} of 0"
                f" and their standard deviations between {float(std.min()):.3g} and"
                f" {float(std.max()):.3g}. Is there a transform in the dataset that standardises?",
                stacklevel=4,
            )


class MinMax(Preprocessing):
    r"""Map the range of the training split to another one, by default to [-1, 1].

    .. math::
        y = \frac{x - c}{s} + \frac{a + b}{2} \qquad
        c = \frac{\max + \min}{2} \qquad s = \frac{\max - \min}{b - a}

    for the range :math:`[a, b]`. Values of other splits may lie outside of it: they are not
    clipped. A column that is constant in the training split becomes :math:`(a + b) / 2`, and has
    :math:`s = 1`; a warning counts such columns.

    Source: min-max scaling, lectures S0, S1 and S3.

    Args:
        range: The least and the greatest value of the result, :math:`a < b`.
        per: Which numbers share a range, see :class:`Preprocessing`.

    Raises:
        TypeError: If ``range`` is not a list or tuple of numbers.
        ValueError: If it has not two numbers, the lesser first.

    Example:
        >>> from lightning_practices.data import MinMax
        >>> MinMax().fit(torch.tensor([[1.0], [3.0]]))(torch.tensor([[2.5]]))
        tensor([[0.5000]])
    """

    options = ("range", "per")
    statistics = ("centre", "scale")
    centre: Tensor
    scale: Tensor

    def __init__(self, range: tuple[float, float] = (-1.0, 1.0), per: Per = "auto") -> None:
        super().__init__(per)
        self.range = _check_range(range)

    @override
    def _solved(self, moments: Moments) -> dict[str, Tensor]:
        low, high = self.range
        scale = (moments.most - moments.least) / (high - low)
        centre = moments.least / 2 + moments.most / 2
        return {"centre": centre, "scale": torch.where(moments.constant, 1.0, scale)}

    @override
    def _applied(self, x: Tensor) -> Tensor:
        shifted = x - self._broadcast(self.centre, x)
        return shifted.div_(self._broadcast(self.scale, x)).add_(math.fsum(self.range) / 2)

    @override
    def _undone(self, x: Tensor) -> Tensor:
        scaled = (x - math.fsum(self.range) / 2) * self._broadcast(self.scale, x)
        return scaled.add_(self._broadcast(self.centre, x))


def _check_range(value: Any) -> tuple[float, float]:
    numbers = [
        check_number(f"range[{place}]", one)
        for place, one in enumerate(check_listed("range", value, "two numbers"))
    ]
    if len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"range has to be two numbers, the lesser first, but got {value}")
    return numbers[0], numbers[1]
