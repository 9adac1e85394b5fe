"""Counts, means, spreads and ranges of data that arrives in pieces."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    r"""The statistics of rows of numbers, in float64.

    Two of them merge to those of all rows, whatever the sizes:

    .. math::
        \mu = \mu_a + \frac{n_b}{n} \delta \qquad
        S = S_a + S_b + \frac{n_a n_b}{n} \delta \delta^\top \qquad \delta = \mu_b - \mu_a

    Source: Chan, Golub and LeVeque, 1979, *Updating formulae and a pairwise algorithm for computing
    sample variances*.

    Attributes:
        count: Number of rows.
        mean: Mean of each column.
        squares: Sum of the squared differences from the mean, for each column; or of their
            products, for each pair of columns.
        least: Least value of each column.
        most: Greatest value of each column.
        eps: Resolution of the data's dtype, such as 1.2e-7 for float32; 0 for whole numbers.
    """

    count: int
    mean: Tensor
    squares: Tensor
    least: Tensor
    most: Tensor
    eps: float

    @classmethod
    def of(cls, x: Tensor, dims: tuple[int, ...]) -> "Moments":
        """Return the statistics of ``x`` over the dimensions ``dims``."""
        values = x.double()
        ordered = x if x.is_floating_point() else values
        least, most = ordered.amin(dims).double(), ordered.amax(dims).double()
        mean = values.mean(dims, keepdim=True)
        centred = values - mean if values is x else values.sub_(mean)
        squares = centred.square_().sum(dims)
        return cls(_count(x, dims), mean.view(squares.shape), squares, least, most, _resolution(x))

    @classmethod
    def of_pairs(cls, rows: Tensor) -> "Moments":
        """Return the statistics of a matrix, with the products of each pair of columns."""
        own = cls.of(rows, (0,))
        centred = rows.double() - own.mean
        return replace(own, squares=centred.mT @ centred)

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        apart = other.mean - self.mean
        products = (
            apart.square() if self.squares.shape == apart.shape else torch.outer(apart, apart)
        )
        return Moments(
            count,
            self.mean + apart * (other.count / count),
            self.squares + other.squares + products * (self.count * other.count / count),
            torch.minimum(self.least, other.least),
            torch.maximum(self.most, other.most),
            max(self.eps, other.eps),
        )

    @property
    def constant(self) -> Tensor:
        """Which columns are constant, up to the rounding of the data."""
        largest = torch.maximum(self.least.abs(), self.most.abs())
        return self.most - self.least <= 4 * self.eps * largest


def merged(pieces: Iterable[Moments]) -> Moments | None:
    """Return the statistics of all pieces, ``None`` if there is no piece."""
    total: Moments | None = None
    for piece in pieces:
        total = piece if total is None else total + piece
    return total


def _count(x: Tensor, dims: tuple[int, ...]) -> int:
    count = 1
    for dim in dims:
        count *= x.shape[dim]
    return count


def _resolution(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0
