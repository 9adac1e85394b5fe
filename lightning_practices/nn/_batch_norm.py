"""Batch normalisation over the fused kernels, with a residual and an activation."""

from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

import lightning_kernels
from lightning_kernels import Activation


class FusedBatchNorm(_BatchNorm):
    """Base class of the fused batch norms. Not a layer by itself: see :class:`BatchNorm2d`.

    The defaults are class attributes, for layers that became fused by a change of their class.
    """

    activation: Activation | None = None
    activation_parameter: float | None = None
    virtual_batch_size: int | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: Activation | None = None,
        activation_parameter: float | None = None,
        virtual_batch_size: int | None = None,
        **kwargs: Any,  # torch's bias, which its older versions don't have
    ) -> None:
        if activation is not None and activation not in get_args(Activation):
            known = ", ".join(get_args(Activation))
            raise ValueError(f"activation must be None or one of {known}, but got {activation!r}")
        if virtual_batch_size is not None and not (
            isinstance(virtual_batch_size, int) and virtual_batch_size > 0
        ):
            raise ValueError(
                f"virtual_batch_size must be a positive number of samples or None,"
                f" but got {virtual_batch_size!r}"
            )
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, **kwargs
        )
        self.activation = activation
        self.activation_parameter = activation_parameter
        self.virtual_batch_size = virtual_batch_size

    @override
    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if (
            residual is None
            and self.activation is None
            and not self.training
            and lightning_kernels.route(input) == "aten"
            and _is_of_one_type(self._parameters.get("weight"), self._buffers.get("running_mean"))
        ):
            y: Tensor = super().forward(input)  # the same, without our own checks
            return y
        return self.normalise(input, residual, self.activation, self.activation_parameter)

    def normalise(
        self,
        input: Tensor,
        residual: Tensor | None,
        activation: str | None,
        activation_parameter: float | None,
    ) -> Tensor:
        """Run the layer with this activation in place of its own, as a fused block does."""
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        arguments = activation, activation_parameter
        pieces = 1
        if self.training and self.virtual_batch_size is not None:
            pieces = -(-input.shape[0] // self.virtual_batch_size)
        if pieces <= 1:
            return self._normalise_batch(input, residual, *arguments)
        size, larger = divmod(input.shape[0], pieces)
        if size * input[:1].numel() == input.shape[1] > 0:
            raise ValueError(
                "Expected more than 1 value per channel when training, got input size"
                f" {input.shape} in {pieces} virtual batches"
            )
        sizes = [size + 1] * larger + [size] * (pieces - larger)
        residuals = [None] * pieces if residual is None else torch.split(residual, sizes)
        return torch.cat(
            [
                self._normalise_batch(*samples, *arguments)
                for samples in zip(torch.split(input, sizes), residuals, strict=True)
            ]
        )

    def _normalise_batch(
        self,
        input: Tensor,
        residual: Tensor | None,
        activation: str | None,
        activation_parameter: float | None,
    ) -> Tensor:
        """Normalise by the statistics of ``input`` or the running ones, chosen as torch does."""
        tracks = self.training and self.track_running_stats and self.running_mean is not None
        momentum = self.momentum
        if momentum is None:  # a cumulative average: every batch so far has the same weight
            counted = self.num_batches_tracked if tracks else None
            momentum = 0.0 if counted is None else 1 / (int(counted) + 1)
        recorded = tracks or not self.training
        y = lightning_kernels.batch_norm(
            input,
            self.running_mean if recorded else None,
            self.running_var if recorded else None,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            momentum,
            self.eps,
            activation=activation,
            activation_parameter=activation_parameter,
            residual=residual,
            process_group=self._synchronised_over(),
        )
        if tracks and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)  # only now: an error above leaves it as it was
        return y

    def _synchronised_over(self) -> Any:
        """Return the process group whose batches count as one, if there is one."""
        return None

    @property
    def qconfig(self) -> Any:
        """The quantisation settings, which torch reads before it makes another layer of this one.

        ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` and eager quantisation know neither
        activations nor virtual batches, and would drop them without a warning. So this raises.
        """
        if self.activation is not None or self.virtual_batch_size is not None:
            raise RuntimeError(
                f"{self} can't be converted by torch, which would drop its activation or virtual"
                " batches: use lightning_practices.nn.SyncBatchNorm.convert_sync_batchnorm (or"
                " Trainer(plugins=[lightning_practices.plugins.FusedSyncBatchNorm()])), or build"
                " the layer without them"
            )
        try:
            return vars(self)["qconfig"]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no qconfig") from None

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        vars(self)["qconfig"] = value

    @qconfig.deleter
    def qconfig(self) -> None:
        del vars(self)["qconfig"]

    @override
    def extra_repr(self) -> str:
        text: str = super().extra_repr()  # type: ignore[no-untyped-call]
        for name in ("activation", "activation_parameter", "virtual_batch_size"):
            if (value := getattr(self, name)) is not None:
                text += f", {name}={value}"
        return text


def _is_of_one_type(weight: Tensor | None, mean: Tensor | None) -> bool:
    return weight is None or mean is None or weight.dtype is mean.dtype


class BatchNorm2d(FusedBatchNorm, nn.BatchNorm2d):
    r"""Normalise each channel of a batch, add a residual and activate, in one pass after a first.

    .. math::
        y = a\!\left(\frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma
            + \beta + r\right)

    with an activation :math:`a` and a residual :math:`r` if there are any. Mean and biased
    variance are taken over all values of a channel in the batch, in evaluation they are the
    running ones. Statistics are float32 for 16-bit inputs. Still a :class:`torch.nn.BatchNorm2d`:
    ``state_dict``, ``repr`` and the other arguments are inherited, so checkpoints go both ways.

    With ``virtual_batch_size``, in training, statistics are those of each virtual batch (ghost
    batch norm): the batch is cut into as few equal pieces, to a sample, as keep within that size,
    and each updates the running statistics, and ``num_batches_tracked``, in turn.

    :func:`torch.nn.utils.fuse_conv_bn_eval` merges the normalisation into a convolution and leaves
    the activation to its caller. :meth:`torch.nn.SyncBatchNorm.convert_sync_batchnorm` would drop
    the activation or the virtual batches without a warning, so it raises on a layer that has one.
    :meth:`SyncBatchNorm.convert_sync_batchnorm` keeps the activation.

    Ioffe and Szegedy, 2015, *Batch Normalization*, arXiv:1502.03167; Hoffer, Hubara and Soudry,
    2017, *Train longer, generalize better*, arXiv:1705.08741 (virtual batches).

    Args:
        num_features: Number of channels :math:`C`.
        eps: Added to the variance.
        momentum: Share of a batch in the running statistics; ``None`` for a cumulative average.
        affine: Learn :math:`\gamma` (``weight``, first ones) and :math:`\beta` (``bias``, zeros).
        track_running_stats: Keep running statistics; without, evaluation uses the batch's too.
        device: Of the parameters and buffers.
        dtype: Of the parameters and buffers.
        activation: ``None``, ``"relu"``, ``"leaky_relu"``, ``"elu"``, ``"selu"``, ``"silu"`` or
            ``"gelu"``.
        activation_parameter: Slope of leaky_relu (by default 0.01) or alpha of elu (1.0).
        virtual_batch_size: Most samples of a virtual batch; ``None`` for the whole batch.

    Shape:
        - Input: :math:`(N, C, H, W)`, any floating dtype, contiguous or channels last.
        - Residual: as the input, or ``None``.
        - Output: as the input, its memory format included.

    Raises:
        ValueError: If ``activation`` is unknown or ``virtual_batch_size`` is not a positive number;
            from ``forward``, for an input of another dimension, or a single value per channel in
            training.
        RuntimeError: From ``forward``, if shapes or types of input, residual and parameters don't
            match.
    """


class BatchNorm1d(FusedBatchNorm, nn.BatchNorm1d):
    """:class:`BatchNorm2d` for inputs of shape :math:`(N, C)` or :math:`(N, C, L)`."""


class BatchNorm3d(FusedBatchNorm, nn.BatchNorm3d):
    """:class:`BatchNorm2d` for inputs of shape :math:`(N, C, D, H, W)`."""
