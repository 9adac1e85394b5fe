"""Losses that smooth labels in training, but not in evaluation."""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices._arguments import check_choice, check_instance, check_number, check_whole


class LabelSmoothingCrossEntropyLoss(nn.CrossEntropyLoss):
    r"""Cross entropy with smoothed labels in training, and with the given labels in evaluation.

    .. math::
        \ell = -\sum_{k=1}^K w_k \, q_k \log \mathrm{softmax}(x)_k, \qquad
        q_k = (1 - \alpha) \, y_k + \frac{\alpha}{K}

    where :math:`\alpha` is ``label_smoothing`` in training, and 0 in evaluation. Smoothing keeps
    logits bounded and prevents overconfidence. :class:`torch.nn.CrossEntropyLoss` also smooths in
    evaluation. But a smoothed validation loss can't be compared with the losses of other runs, and
    it doesn't measure the quality of probabilities. This loss follows ``train()`` and ``eval()``,
    as dropout does. Make it an attribute of the module, so that these calls reach it.

    Everything else works as in torch: ``weight``, ``ignore_index``, and targets that are
    probabilities, such as mixup's, which are smoothed too. The smoothed loss can't fall below the
    entropy of :math:`q`, which is about 0.50 for labels of 10 classes and :math:`\alpha = 0.1`. So
    a training loss above the validation loss is no sign of underfitting. To compare the two, log
    the training loss without smoothing too.

    Szegedy et al., 2016, *Rethinking the inception architecture for computer vision*,
    arXiv:1512.00567; label smoothing 0.1 in table 1 of lecture S1.

    Args:
        weight: Weight of each class, of shape :math:`(K)`.
        ignore_index: Label of the samples that are ignored. It doesn't apply to probabilities.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: Amount of smoothing :math:`\alpha`, from 0 to 1.

    Shape:
        - Input: :math:`(K)`, :math:`(N, K)` or :math:`(N, K, d_1, ...)`, any floating dtype.
        - Target: int64 labels of the input's shape without :math:`K`, or probabilities of the
          input's shape.
        - Output: a scalar; if ``reduction`` is ``"none"``, the input's shape without :math:`K`.

    Raises:
        ValueError: If ``label_smoothing`` is outside ``[0, 1]``.

    Example:
        >>> from lightning_practices.nn import LabelSmoothingCrossEntropyLoss
        >>> loss = LabelSmoothingCrossEntropyLoss(label_smoothing=0.1)
        >>> logits, labels = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([0])
        >>> loss(logits, labels), loss.eval()(logits, labels)
        (tensor(0.3026), tensor(0.0360))
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.1,
    ) -> None:
        label_smoothing = _checked(weight, reduction, label_smoothing)
        ignore_index = check_whole("ignore_index", ignore_index, None)
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
    r"""Binary cross entropy with smoothed labels in training, and given labels in evaluation.

    .. math::
        \ell = -w \left( p \, q \log \sigma(x) + (1 - q) \log (1 - \sigma(x)) \right), \qquad
        q = (1 - \alpha) \, y + \frac{\alpha}{2}

    It is the counterpart of :class:`LabelSmoothingCrossEntropyLoss` for outputs that are
    independent yes-or-no labels. Torch has no such loss. At :math:`\alpha = 0.1` the loss can't
    fall below about 0.20.

    Source: as for :class:`LabelSmoothingCrossEntropyLoss`.

    Args:
        weight: Weight :math:`w` of each element, broadcast.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        pos_weight: Weight :math:`p` of the positive label of each output, broadcast.
        label_smoothing: Amount of smoothing :math:`\alpha`, from 0 to 1.

    Shape:
        - Input: any shape, any floating dtype.
        - Target: shape of the input, any floating dtype, values from 0 to 1.
        - Output: a scalar; if ``reduction`` is ``"none"``, the input's shape.

    Raises:
        ValueError: If ``label_smoothing`` is outside ``[0, 1]``.
        TypeError: From ``forward``, if the target's dtype is not floating.

    Example:
        >>> from lightning_practices.nn import LabelSmoothingBCEWithLogitsLoss
        >>> loss = LabelSmoothingBCEWithLogitsLoss(label_smoothing=0.1)
        >>> logits, labels = torch.tensor([4.0, -4.0]), torch.tensor([1.0, 0.0])
        >>> loss(logits, labels), loss.eval()(logits, labels)
        (tensor(0.2181), tensor(0.0181))
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        label_smoothing: float = 0.1,
    ) -> None:
        label_smoothing = _checked(weight, reduction, label_smoothing)
        if pos_weight is not None:
            check_instance("pos_weight", pos_weight, Tensor, "a tensor")
        super().__init__(weight, reduction=reduction, pos_weight=pos_weight)
        self.label_smoothing = label_smoothing

    @override
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        if not target.is_floating_point():  # in training, smoothing would make it floating
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


def _checked(weight: Tensor | None, reduction: str, label_smoothing: float) -> float:
    if weight is not None:
        check_instance("weight", weight, Tensor, "a tensor")
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    return check_number("label_smoothing", label_smoothing, ge=0, le=1)
