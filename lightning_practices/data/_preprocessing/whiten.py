"""Preprocessing that removes correlations."""

import warnings
from typing import Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from lightning_practices._arguments import check_choice, check_number
from lightning_practices.data._preprocessing.layout import Per, as_rows, from_rows, resolved
from lightning_practices.data._preprocessing.moments import Moments
from lightning_practices.data._preprocessing.preprocessing import Preprocessing

WhiteningKind = Literal["zca", "pca"]
_MOST_COLUMNS = 16384  # whose covariance takes 2 GiB


class Whiten(Preprocessing):
    r"""Make features uncorrelated, with variance 1, by the covariance of the training split.

    .. math::
        y = W (x - \mu) \qquad W_{\mathrm{ZCA}} = U \Lambda^{-1/2} U^\top \qquad
        W_{\mathrm{PCA}} = \Lambda^{-1/2} U^\top \qquad
        (1 - s) \Sigma + s \frac{\operatorname{tr} \Sigma}{d} I = U \Lambda U^\top

    with the covariance :math:`\Sigma` of the :math:`d` columns, divided by :math:`n`, and the
    shrinkage :math:`s`. ZCA results stay as close to the input as they can, so that images stay
    images. PCA results are the principal components, by falling variance; the sign of each is such
    that its largest weight is positive.

    A direction in which the training split doesn't vary, up to the rounding of its dtype, is mapped
    to zero, so that other data don't explode along it. A warning counts such directions.
    :meth:`~Preprocessing.inverse` gives their mean back. With ``shrinkage`` there are none.

    With ``per="channel"`` the covariance is that of the channels over all pixels. With
    ``per="pixel"`` it is that of all values of a sample, whose memory grows with the square of
    their number: 3 MB for 28 x 28 grey pixels, 76 MB for 32 x 32 x 3.

    Sources: whitening, lectures S0, S1 and S3; Kessy, Lewin and Strimmer, 2018, *Optimal whitening
    and decorrelation*, arXiv:1512.00809.

    Args:
        kind: ``"zca"`` or ``"pca"``.
        shrinkage: How far the covariance is moved towards a multiple of the identity, 0 to 1.
        per: What the columns are, see :class:`Preprocessing`.

    Raises:
        TypeError: If ``shrinkage`` is not a number.
        ValueError: If ``kind`` is neither, or ``shrinkage`` is not between 0 and 1. On fitting, if
            there are more than 16384 columns, or fewer than two samples.

    Example:
        >>> from lightning_practices.data import Whiten
        >>> x = torch.randn(500, 2) @ torch.tensor([[2.0, 1.0], [0.0, 0.5]])
        >>> Whiten().fit(x)(x).T.cov(correction=0).round(decimals=3).abs()
        tensor([[1., 0.],
                [0., 1.]])
    """

    options = ("kind", "shrinkage", "per")
    statistics = ("mean", "matrix", "inverse_matrix")
    mean: Tensor
    matrix: Tensor
    inverse_matrix: Tensor

    def __init__(
        self, kind: WhiteningKind = "zca", shrinkage: float = 0.0, per: Per = "auto"
    ) -> None:
        super().__init__(per)
        self.kind: WhiteningKind = check_choice("kind", kind, get_args(WhiteningKind))
        self.shrinkage = check_number("shrinkage", shrinkage, ge=0, le=1)
        self._flat = 0  # directions without variance, in the data of the last fit

    @override
    def _moments(self, x: Tensor, per: Per) -> Moments:
        rows = as_rows(x, per)
        if rows.shape[1] > _MOST_COLUMNS:
            raise ValueError(
                f"Whiten would need a covariance of {rows.shape[1]} x {rows.shape[1]} numbers for"
                f" tensors of shape {tuple(x.shape)} per {per}: more than {_MOST_COLUMNS} columns"
                " are refused; per='channel' whitens colours"
            )
        return Moments.of_pairs(rows)

    @override
    def _solved(self, moments: Moments) -> dict[str, Tensor]:
        if moments.count < 2:
            raise ValueError("Whiten needs two samples at least: one has no covariance")
        values, vectors = self._eigen(moments)
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0)[None]).sign()
        flat = values <= _rounding(moments, values)
        self._flat = int(flat.sum())
        inverse_root = torch.where(flat, 0.0, values.clamp_min(0).rsqrt())
        root = torch.where(flat, 0.0, values.clamp_min(0).sqrt())
        matrix, inverse = inverse_root[:, None] * vectors.mT, vectors * root
        if self.kind == "zca":
            matrix, inverse = vectors @ matrix, inverse @ vectors.mT
        return {"mean": moments.mean, "matrix": matrix, "inverse_matrix": inverse}

    def _eigen(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Return the eigenvalues of the shrunk covariance, falling, and its eigenvectors."""
        covariance = moments.squares / moments.count
        spread = covariance.diagonal().mean()
        eye = torch.eye(len(covariance), dtype=covariance.dtype)
        covariance = (1 - self.shrinkage) * covariance + self.shrinkage * spread * eye
        values, vectors = torch.linalg.eigh(covariance)
        return values.flip(0), vectors.flip(1)

    @override
    def _applied(self, x: Tensor) -> Tensor:
        per = resolved(self.per, x)
        rows = self._rows(x, per)
        with torch.autocast(x.device.type, enabled=False):
            result = (rows - self.mean.to(x.dtype)) @ self.matrix.to(x.dtype).mT
        return from_rows(result, per, x)

    @override
    def _undone(self, x: Tensor) -> Tensor:
        per = resolved(self.per, x)
        rows = self._rows(x, per)
        with torch.autocast(x.device.type, enabled=False):
            result = rows @ self.inverse_matrix.to(x.dtype).mT + self.mean.to(x.dtype)
        return from_rows(result, per, x)

    def _rows(self, x: Tensor, per: Per) -> Tensor:
        rows = as_rows(x, per)
        if rows.shape[1] != len(self.mean):
            raise ValueError(
                f"the preprocessing was fitted to {len(self.mean)} columns, but got a tensor of"
                f" shape {tuple(x.shape)}, of {rows.shape[1]}"
            )
        return rows

    @override
    def _warn(self, moments: Moments) -> None:
        if self._flat:
            count = len(moments.mean)
            warnings.warn(
                f"Whiten: the data vary in {count - self._flat} of {count} directions alone;"
                " the others are mapped to zero. shrinkage=0.1 keeps all",
                stacklevel=4,
            )


def _rounding(moments: Moments, values: Tensor) -> Tensor:
    """Return the variance that the rounding of the data alone can make."""
    largest = torch.maximum(moments.least.abs(), moments.most.abs()).max()
    of_data = (moments.eps * largest).square()
    return len(values) * (of_data + torch.finfo(torch.float64).eps * values[0].clamp_min(0))
