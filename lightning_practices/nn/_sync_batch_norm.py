"""Batch normalisation over the batches of several processes."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized
from typing_extensions import override

from lightning_practices.nn._batch_norm import FusedBatchNorm

_MARK = "_synchronised_from"  # the class before, in the instance's ``__dict__``


class SyncBatchNorm(FusedBatchNorm):
    r"""Batch norm by the statistics of all processes' batches together, fused like the others.

    The same as one process on the joined batch, outputs, gradients and running statistics, with
    one collective forward and one backward: counts go along, so batches may differ in size and may
    be empty. In evaluation, or without other processes, a local batch norm. Second derivatives
    raise. See :class:`BatchNorm2d` for the equation.

    Other than :class:`torch.nn.SyncBatchNorm`'s, whose arguments, ``repr`` and ``state_dict`` it
    has, it runs on the CPU too (over gloo). It is no subclass of it: torch's
    ``DistributedDataParallel`` refuses those on the CPU.

    Args:
        num_features: Number of channels :math:`C`.
        eps: Added to the variance.
        momentum: Share of a batch in the running statistics; ``None`` for a cumulative average.
        affine: Learn ``weight`` and ``bias``.
        track_running_stats: Keep running statistics; without, evaluation uses the batch's.
        process_group: Processes to synchronise with, by default all.
        device: Of the parameters and buffers.
        dtype: Of the parameters and buffers.
        **kwargs: ``activation`` and ``activation_parameter``, as for :class:`BatchNorm2d`.

    Shape:
        - Input: :math:`(N, C, *)`, any floating dtype; :math:`N` may be 0.
        - Residual: as the input, or ``None``.
        - Output: as the input, its memory format included.

    Raises:
        ValueError: If ``virtual_batch_size`` is given: smaller and larger batches exclude another.
        TypeError: From ``forward`` in training, if ``process_group`` is none that this process is
            in.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, **kwargs
        )
        if self.virtual_batch_size is not None:
            raise ValueError(
                "SyncBatchNorm takes statistics over several processes' batches, a virtual batch"
                f" is a part of one: got virtual_batch_size={self.virtual_batch_size}"
            )
        self.process_group = process_group

    _check_input_dim = nn.SyncBatchNorm._check_input_dim  # two dimensions or more

    @override
    def _synchronised_over(self) -> Any:
        distributed = torch.distributed
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return None
        return self.process_group or distributed.group.WORLD

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """Make every batch norm of ``module`` one of this class, activations included.

        In place, ``module`` itself included, by changing a layer's class and nothing else: torch's
        makes new layers, which hooks and references do not know. Layers that are synchronised
        already, by this class or torch's, keep their process group. If anything raises, nothing
        was changed.

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
            if not isinstance(layer, cls):
                vars(layer)[_MARK] = type(layer)
                vars(layer).setdefault("process_group", process_group)
                layer.__class__ = cls
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
        return "it has virtual batches, parts of one batch: set its virtual_batch_size to None"
    kinds = (FusedBatchNorm, _BatchNorm, nn.SyncBatchNorm)
    if "forward" in vars(layer) or type(layer).forward not in [kind.forward for kind in kinds]:
        return (
            f"{type(layer).__name__} has a forward of its own, which would be lost: put a layer of"
            " lightning_practices.nn in its place"
        )
    return None
