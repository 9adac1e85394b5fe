"""Losses that smooth labels while training, and are plain in evaluation."""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from typing_extensions import override


class LabelSmoothingCrossEntropyLoss(nn.CrossEntropyLoss):
    r"""Cross entropy against smoothed labels while training, against the given ones in evaluation.

    .. math::
        \ell = -\sum_{k=1}^K w_k \, q_k \log \mathrm{softmax}(x)_k, \qquad
        q_k = (1 - \alpha) \, y_k + \frac{\alpha}{K}

    with :math:`\alpha` the ``label_smoothing``, 0 after ``eval()``. The network is kept from
    outputs without bounds and from confidence without reason. :class:`torch.nn.CrossEntropyLoss`
    smooths in evaluation too, and a validation loss that is smoothed can neither be compared with
    others nor judge probabilities; hence ``train()`` and ``eval()`` decide, as for dropout. Make
    the loss an attribute of the module, so that they reach it.

    Everything else is torch's: ``weight``, ``ignore_index``, and targets that are probabilities, as
    those of mixup, smoothed as well. The smoothed loss doesn't fall below the entropy of
    :math:`q`, for labels of 10 classes and :math:`\alpha = 0.1` about 0.50, so a training loss
    above the validation loss is no sign of underfitting: log the plain one too to compare.

    Szegedy et al., 2016, *Rethinking the inception architecture for computer vision*,
    arXiv:1512.00567; label smoothing 0.1 in table 1 of lecture S1.

    Args:
        weight: Of each class, of shape :math:`(K)`.
        ignore_index: Label that counts for nothing; for labels, not for probabilities.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: :math:`\alpha`, from 0 to 1.

    Shape:
        - Input: :math:`(K)`, :math:`(N, K)` or :math:`(N, K, d_1, ...)`, any floating dtype.
        - Target: labels, int64 of the input's shape without :math:`K`, or probabilities of its
          whole shape.
        - Output: a scalar; the target's shape without :math:`K` if ``reduction`` is ``"none"``.

    Raises:
        ValueError: If ``label_smoothing`` is outside ``[0, 1]``.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.1,
    ) -> None:
        _check(label_smoothing)
        super().__init__(
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )

    @override
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing if self.training else 0.0,
        )

    @override
    def extra_repr(self) -> str:
        return f"label_smoothing={self.label_smoothing}"


class LabelSmoothingBCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    r"""Binary cross entropy against smoothed labels while training, plain in evaluation.

    .. math::
        \ell = -w \left( p \, q \log \sigma(x) + (1 - q) \log (1 - \sigma(x)) \right), \qquad
        q = (1 - \alpha) \, y + \frac{\alpha}{2}

    What :class:`LabelSmoothingCrossEntropyLoss` is for classes, of which torch has none for two:
    each output is a question of its own. The least loss of a label is, at
    :math:`\alpha = 0.1`, about 0.20.

    Args:
        weight: Of each element, broadcast.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        pos_weight: :math:`p`, of the positive answer to each question, broadcast.
        label_smoothing: :math:`\alpha`, from 0 to 1.

    Shape:
        - Input: any, of any floating dtype.
        - Target: the same, floating, from 0 to 1.
        - Output: a scalar; the input's shape if ``reduction`` is ``"none"``.

    Raises:
        ValueError: If ``label_smoothing`` is outside ``[0, 1]``.
        TypeError: From ``forward``, if the target isn't floating.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        label_smoothing: float = 0.1,
    ) -> None:
        _check(label_smoothing)
        super().__init__(weight, reduction=reduction, pos_weight=pos_weight)
        self.label_smoothing = label_smoothing

    @override
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        if not target.is_floating_point():  # smoothing would make it so, and evaluation fail
            raise TypeError(
                f"LabelSmoothingBCEWithLogitsLoss takes targets of a floating dtype, but got"
                f" {target.dtype}: pass target.to(input.dtype)"
            )
        if self.training:
            target = target * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        return super().forward(input, target)

    @override
    def extra_repr(self) -> str:
        return f"label_smoothing={self.label_smoothing}"


def _check(label_smoothing: float) -> None:
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing has to be between 0 and 1, but got {label_smoothing}")
