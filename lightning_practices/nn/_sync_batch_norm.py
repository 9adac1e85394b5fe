"""Batch normalisation with statistics that several processes share."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized
from typing_extensions import override

from lightning_kernels import Activation
from lightning_practices.nn._batch_norm import FusedBatchNorm

_MARK = "_synchronised_from"  # attribute of a converted layer that holds its previous class


class SyncBatchNorm(FusedBatchNorm):
    r"""Batch norm with the statistics of the batches of all processes together.

    Outputs, gradients and running statistics equal those of one process on the concatenated batch.
    The layer runs the fused kernels, and one collective in each of forward and backward. The
    collectives also exchange the batch sizes, so batches may differ in size and may be empty. In
    evaluation, or without other processes, it is a local batch norm. Second derivatives raise an
    error. See :class:`BatchNorm2d` for the equation and the source.

    It has the arguments, ``repr`` and ``state_dict`` of :class:`torch.nn.SyncBatchNorm`, and also
    runs on the CPU (over gloo). It is not a subclass of torch's class, since
    ``DistributedDataParallel`` raises an error for such layers on the CPU.

    Args:
        num_features: Number of channels :math:`C`.
        eps: Number added to the variance.
        momentum: Weight of a batch in the running statistics; ``None`` for a cumulative average.
        affine: Whether to learn ``weight`` and ``bias``.
        track_running_stats: Whether to keep running statistics. Without them, evaluation uses the
            statistics of the batch.
        process_group: Group of the processes that share statistics. Default: all processes.
        device: Device of the parameters and buffers.
        dtype: Dtype of the parameters and buffers.
        bias: Whether to learn ``bias`` too, as for :class:`BatchNorm2d`.
        activation: Activation after the normalisation, as for :class:`BatchNorm2d`.
        activation_parameter: Parameter of the activation, as for :class:`BatchNorm2d`.

    Shape:
        - Input: :math:`(N, C, *)`, any floating dtype; :math:`N` may be 0.
        - Residual: shape and dtype of the input, or ``None``.
        - Output: shape, dtype and memory format of the input.

    Raises:
        TypeError: From ``forward`` in training, if this process is not in ``process_group``.

    Example:
        >>> from lightning_practices.nn import SyncBatchNorm
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> model = SyncBatchNorm.convert_sync_batchnorm(model)
        >>> [type(layer).__name__ for layer in model]
        ['Conv2d', 'SyncBatchNorm']
        >>> model(torch.randn(4, 3, 8, 8)).shape  # without other processes a local batch norm
        torch.Size([4, 8, 6, 6])
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
        *,
        bias: bool = True,
        activation: Activation | None = None,
        activation_parameter: float | None = None,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device,
            dtype,
            bias=bias,
            activation=activation,
            activation_parameter=activation_parameter,
        )
        self.process_group = process_group

    _check_input_dim = nn.SyncBatchNorm._check_input_dim  # the input has two dimensions or more

    @override
    def _synchronised_over(self) -> Any:
        distributed = torch.distributed
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return None
        return self.process_group or distributed.group.WORLD

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """Convert every batch norm of ``module`` to this class, with its activation.

        The conversion changes only the class of each layer, in place, including ``module`` itself.
        Torch's method makes new layers instead: hooks are lost, and references to the old layers
        become stale. Layers that are synchronised already, of this class or torch's, keep their
        process group. After an error the model is unchanged.

        Args:
            module: The model.
            process_group: Group of the processes that share statistics. Default: all processes.

        Returns:
            ``module``.

        Raises:
            TypeError: If a batch norm has its own ``forward``, is lazy, is parametrized, or has
                virtual batches: the conversion would lose these.
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
        """Undo :meth:`convert_sync_batchnorm`: set each layer's previous class, in place.

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
    """Return why ``layer`` can't be converted, or ``None`` if it can."""
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
