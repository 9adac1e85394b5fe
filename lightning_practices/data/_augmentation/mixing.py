"""MixUp and CutMix of the samples of a batch, and the soft targets that they make."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from lightning_practices._arguments import check_instance
from lightning_practices._seeds import hashed
from lightning_practices.data._augmentation.checks import check_batch, parts_of
from lightning_practices.data._augmentation.states import seed_all, states_kept

_MIXING = (v2.MixUp, v2.CutMix)


def is_mixing(transform: Any) -> bool:
    """Say whether a transform mixes the samples of a batch.

    Raises:
        ValueError: If it holds both transforms that mix samples and others.
    """
    leaves = [one for one in parts_of(transform) if not hasattr(one, "transforms")]
    kinds = {isinstance(one, _MIXING) for one in leaves}
    if kinds == {True, False}:
        raise ValueError(
            f"{type(transform).__name__} holds MixUp or CutMix beside transforms of single samples,"
            " and these would draw once for a whole batch: list them apart, as in"
            " ['flip', RandomChoice([MixUp(...), CutMix(...)])]"
        )
    return True in kinds


def mixed(
    transforms: Sequence[Any], images: Tensor, targets: Any, seed: int
) -> tuple[Tensor, Tensor]:
    """Return a batch of mixed images and soft targets."""
    check_batch(images)
    if not isinstance(targets, Tensor):
        raise TypeError(
            "MixUp and CutMix need the targets as a tensor of class indices (N) or of probabilities"
            f" (N, K), but got {type(targets).__name__}"
        )
    with states_kept(images.device):
        for place, transform in enumerate(transforms):
            seed_all(hashed(seed, place), images.device)
            images, targets = _mixed(transform, images, targets)
    return images, targets


def _mixed(transform: Any, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if targets.ndim == 1:
        if targets.is_floating_point():
            raise TypeError(
                "MixUp and CutMix mix classes: targets have to be class indices (N) or"
                f" probabilities (N, K), but got {targets.dtype} of shape {tuple(targets.shape)}"
            )
        if any(getattr(one, "num_classes", 1) is None for one in parts_of(transform)):
            raise ValueError(
                f"{type(transform).__name__} needs the number of classes for targets that are class"
                " indices: give num_classes=..., as in augmentation('mixup', num_classes=10)"
            )
        targets = targets.long()
    values = images if images.is_floating_point() else images.float()
    values, targets = transform(values, targets)
    return (values if images.is_floating_point() else values.round().to(images.dtype)), targets


def hard_targets(targets: Tensor) -> Tensor:
    r"""Return class indices, which torchmetrics takes, for soft or hard targets.

    .. math::
        y_n = \operatorname{argmax}_k t_{nk}

    MixUp and CutMix make targets that are probabilities of classes. Cross entropy takes these as
    they are. Metrics such as the accuracy compare with one class: that of the greater share.

    Args:
        targets: Probabilities of shape ``(N, K)`` or ``(N, K, d_1, ...)``, of a floating dtype; or
            class indices of any shape and an integer dtype, which are returned as they are.

    Returns:
        Class indices, int64 of shape ``(N)`` or ``(N, d_1, ...)``.

    Raises:
        TypeError: If ``targets`` is not a tensor.
        ValueError: If floating targets have no dimension of classes.

    Example:
        >>> from lightning_practices.data import hard_targets
        >>> hard_targets(torch.tensor([[0.3, 0.7], [1.0, 0.0]]))
        tensor([1, 0])
    """
    check_instance("targets", targets, Tensor, "a tensor")
    if not targets.is_floating_point():
        return targets
    if targets.ndim < 2:
        raise ValueError(
            "targets of a floating dtype have to be of shape (N, K) or (N, K, d_1, ...), but got"
            f" {tuple(targets.shape)}"
        )
    return torch.argmax(targets, 1)
