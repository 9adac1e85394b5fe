"""Losses that smooth labels while training and not in evaluation."""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from typing_extensions import override


class LabelSmoothingCrossEntropyLoss(nn.CrossEntropyLoss):
    r"""Cross entropy against smoothed labels while training, against the given ones in evaluation.

    .. math::
        \ell = -\sum_{k=1}^K w_k \, q_k \log \mathrm{softmax}(x)_k, \qquad
        q_k = (1 - \alpha) \, y_k + \frac{\alpha}{K}

    where :math:`\alpha` is ``label_smoothing``, and 0 after ``eval()``. Smoothing keeps logits
    bounded and the network from being overconfident. :class:`torch.nn.CrossEntropyLoss` smooths in
    evaluation too. A smoothed validation loss can't be compared with the losses of other runs, and
    it doesn't measure the quality of probabilities. So here ``train()`` and ``eval()`` decide, as
    for dropout. Make the loss an attribute of the module, so that these calls reach it.

    All other behaviour is torch's: ``weight``, ``ignore_index``, and targets that are
    probabilities, such as mixup's, which are smoothed too. The smoothed loss can't fall below the
    entropy of :math:`q`, which is about 0.50 for labels of 10 classes and :math:`\alpha = 0.1`. So
    a training loss above the validation loss is no sign of underfitting: log the plain training
    loss too to compare.

    Szegedy et al., 2016, *Rethinking the inception architecture for computer vision*,
    arXiv:1512.00567; label smoothing 0.1 in table 1 of lecture S1.

    Args:
        weight: Weight of each class, of shape :math:`(K)`.
        ignore_index: Samples with this label are ignored. Not for targets that are probabilities.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: :math:`\alpha`, from 0 to 1.

    Shape:
        - Input: :math:`(K)`, :math:`(N, K)` or :math:`(N, K, d_1, ...)`, any floating dtype.
        - Target: labels, int64, of the input's shape without :math:`K`; or probabilities of the
          input's shape.
        - Output: a scalar; the input's shape without :math:`K` if ``reduction`` is ``"none"``.

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
    r"""Binary cross entropy against smoothed labels while training, given ones in evaluation.

    .. math::
        \ell = -w \left( p \, q \log \sigma(x) + (1 - q) \log (1 - \sigma(x)) \right), \qquad
        q = (1 - \alpha) \, y + \frac{\alpha}{2}

    The counterpart of :class:`LabelSmoothingCrossEntropyLoss` where each output is a yes or no of
    its own. Torch has none. At :math:`\alpha = 0.1` the loss can't fall below about 0.20.

    Args:
        weight: :math:`w`, weight of each element, broadcast.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        pos_weight: :math:`p`, weight of the positive label of each output, broadcast.
        label_smoothing: :math:`\alpha`, from 0 to 1.

    Shape:
        - Input: any shape, any floating dtype.
        - Target: shape of the input, floating, from 0 to 1.
        - Output: a scalar; the input's shape if ``reduction`` is ``"none"``.

    Raises:
        ValueError: If ``label_smoothing`` is outside ``[0, 1]``.
        TypeError: From ``forward``, if the target is not floating.
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
        if not target.is_floating_point():  # smoothing would hide this until evaluation
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
