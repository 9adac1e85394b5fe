"""Batch normalisation over the batches of several processes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized
from typing_extensions import override

from lightning_practices.nn._batch_norm import FusedBatchNorm

_MARK = "_synchronised_from"  # the class before, in the instance's ``__dict__``


class SyncBatchNorm(FusedBatchNorm, nn.SyncBatchNorm):
    r"""Batch norm by the statistics of all processes' batches together, fused like the others.

    The same as one process on the joined batch, outputs, gradients and running statistics, with
    one collective forward and one backward: counts go along, so batches may differ in size and may
    be empty. Other than torch's it runs on the CPU too (over gloo). Second derivatives raise.
    Still a :class:`torch.nn.SyncBatchNorm`; in evaluation, or without other processes, a local
    batch norm. See :class:`BatchNorm2d` for the equation and the other arguments.

    Args:
        process_group: Processes to synchronise with, by default all.

    Shape:
        - Input: :math:`(N, C, *)`, any floating dtype; :math:`N` may be 0.
        - Residual: as the input, or ``None``.
        - Output: as the input, its memory format included.

    Raises:
        ValueError: If ``virtual_batch_size`` is given: smaller and larger batches exclude another.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.virtual_batch_size is not None:
            raise ValueError(
                "SyncBatchNorm takes statistics over several processes' batches, a virtual batch"
                f" is a part of one: got virtual_batch_size={self.virtual_batch_size}"
            )

    @override
    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return FusedBatchNorm.forward(self, input, residual)

    @override
    def _synchronised_over(self) -> Any:
        distributed = torch.distributed
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return None
        group = self.process_group or distributed.group.WORLD
        return group if distributed.get_world_size(group) > 1 else None

    @override
    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """Make every batch norm of ``module`` one of this class, activations included.

        In place, ``module`` itself included, by changing a layer's class and nothing else: torch's
        makes new layers, which hooks and references do not know. Layers of
        :class:`torch.nn.SyncBatchNorm` keep their process group unless one is given. If anything
        raises, nothing was changed.

        Args:
            module: The model.
            process_group: Processes to synchronise with, by default all.

        Returns:
            ``module``.

        Raises:
            TypeError: If a layer is a batch norm that computes something else besides, is
                parametrized or has virtual batches, all of which would be lost.
        """
        layers = [layer for layer in module.named_modules() if isinstance(layer[1], _BatchNorm)]
        for name, layer in layers:
            if reason := _why_not(layer):
                raise TypeError(f"{name or 'the model itself'} can't be synchronised: {reason}")
        for _, layer in layers:
            group = process_group or vars(layer).get("process_group")
            if not isinstance(layer, cls):
                vars(layer)[_MARK] = type(layer)
                layer.__class__ = cls
            layer.process_group = group
        return module

    @classmethod
    def revert_sync_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Give every layer that :meth:`convert_sync_batchnorm` changed its class again, in place.

        Args:
            module: The model.

        Returns:
            ``module``.
        """
        for layer in module.modules():
            if isinstance(layer, cls) and (original := vars(layer).pop(_MARK, None)):
                layer.__class__ = original
                if not issubclass(original, nn.SyncBatchNorm):
                    del layer.process_group
        return module


def _why_not(layer: _BatchNorm) -> str | None:
    """Return what would be lost, or ``None``."""
    if isinstance(layer, LazyModuleMixin):
        return "it has no parameters yet, run a batch through the model first"
    if is_parametrized(layer):
        return "it is parametrized, remove its parametrizations first"
    if getattr(layer, "virtual_batch_size", None) is not None:
        return "it has virtual batches, which are parts of one batch"
    kinds = (FusedBatchNorm, _BatchNorm, nn.SyncBatchNorm)
    if "forward" in vars(layer) or type(layer).forward not in [kind.forward for kind in kinds]:
        return f"{type(layer).__name__} has a forward of its own"
    return None
