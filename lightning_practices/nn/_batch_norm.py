"""Batch normalisation with a residual and an activation, by the fused kernels."""

from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

import lightning_kernels
from lightning_kernels import Activation
from lightning_practices._arguments import check_choice, check_flag, check_number, check_whole
from lightning_practices.nn._fused_layer import FusedLayer, refuse_proxy, without_bias


class FusedBatchNorm(FusedLayer, _BatchNorm):
    """Base class of the fused batch norms. It is no layer by itself: see :class:`BatchNorm2d`.

    The defaults are class attributes, since layers that ``surgery.fuse`` converts keep their
    ``__dict__`` and never run this constructor.
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
        bias: bool = True,
        activation: Activation | None = None,
        activation_parameter: float | None = None,
        virtual_batch_size: int | None = None,
    ) -> None:
        check_whole("num_features", num_features, 0)
        if momentum is not None:
            momentum = check_number("momentum", momentum, ge=0)
        check_flag("affine", affine)
        check_flag("track_running_stats", track_running_stats)
        if activation is not None:
            check_choice("activation", activation, get_args(Activation), "None")
        if activation_parameter is not None:
            activation_parameter = check_number("activation_parameter", activation_parameter)
        if virtual_batch_size is not None:
            virtual_batch_size = check_whole("virtual_batch_size", virtual_batch_size, 1)
        super().__init__(
            num_features, check_number("eps", eps, ge=0), momentum, affine, track_running_stats,
            device, dtype, **without_bias(bias),
        )  # fmt: skip
        self.activation = activation
        self.activation_parameter = activation_parameter
        self.virtual_batch_size = virtual_batch_size

    @override
    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.normalise(input, residual, self.activation, self.activation_parameter)

    def normalise(
        self,
        input: Tensor,
        residual: Tensor | None,
        activation: str | None,
        activation_parameter: float | None,
    ) -> Tensor:
        """Run the layer with this activation in place of its own. Fused blocks call this method."""
        if type(input) is not Tensor:  # the cheapest test first
            refuse_proxy(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        if self.virtual_batch_size is None or not self.training:
            return self._normalise_batch(input, residual, activation, activation_parameter)
        arguments = activation, activation_parameter
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
        """Normalise by the statistics of ``input`` or by the running statistics, as torch would."""
        # These dictionaries are faster than nn.Module.__getattr__. A parametrized layer has its
        # parameters elsewhere.
        buffers, parameters = self._buffers, self._parameters
        mean, variance = (
            buffers[name] if name in buffers else getattr(self, name)
            for name in ("running_mean", "running_var")
        )
        weight, bias = (
            parameters[name] if name in parameters else getattr(self, name)
            for name in ("weight", "bias")
        )
        training = self.training
        tracks = training and self.track_running_stats and mean is not None
        count = self.num_batches_tracked if tracks else None
        momentum = self.momentum
        if momentum is None:  # a cumulative average: all batches so far have the same weight
            momentum = 0.0 if count is None else 1 / (int(count) + 1)
        recorded = tracks or not training
        y = lightning_kernels.batch_norm(
            input,
            mean if recorded else None,
            variance if recorded else None,
            weight,
            bias,
            training or mean is None,
            momentum,
            self.eps,
            activation=activation,
            activation_parameter=activation_parameter,
            residual=residual,
            process_group=self._synchronised_over(),
        )
        if count is not None:
            count.add_(1)  # last, so that an error leaves the count unchanged
        return y

    def _synchronised_over(self) -> Any:
        """Return the process group that shares statistics, or ``None`` for local statistics."""
        return None

    @property
    def qconfig(self) -> Any:
        """The quantisation settings. Torch reads them before it converts this layer to another.

        ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` and eager quantisation support neither
        activations nor virtual batches, and would drop them without a warning. So this property
        raises an error for a layer with an activation or virtual batches.
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


class BatchNorm2d(FusedBatchNorm, nn.BatchNorm2d):
    r"""Normalise each channel of a batch, add a residual and apply an activation.

    .. math::
        y = a\!\left(\frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma
            + \beta + r\right)

    where the activation :math:`a` and the residual :math:`r` are optional. A first pass over the
    input computes the statistics, a second pass does all the rest. Mean and biased variance are
    taken over all values of a channel in the batch; in evaluation they are the running statistics.
    Statistics are float32 for 16-bit inputs. The layer is a subclass of
    :class:`torch.nn.BatchNorm2d` and inherits ``state_dict``, ``repr`` and the other arguments, so
    each layer loads the other's checkpoints.

    With ``virtual_batch_size``, each virtual batch has its own statistics in training (ghost batch
    norm). The batch is cut into as few virtual batches as this size allows, whose lengths differ by
    one sample at most. The virtual batches update the running statistics and
    ``num_batches_tracked`` one after another.

    :func:`torch.nn.utils.fuse_conv_bn_eval` folds the normalisation into a convolution; its caller
    has to apply the activation. :meth:`torch.nn.SyncBatchNorm.convert_sync_batchnorm` would drop
    the activation or the virtual batches without a warning, so it raises an error for a layer with
    an activation or virtual batches. :meth:`SyncBatchNorm.convert_sync_batchnorm` keeps the
    activation.

    Ioffe and Szegedy, 2015, *Batch Normalization*, arXiv:1502.03167; Hoffer, Hubara and Soudry,
    2017, *Train longer, generalize better*, arXiv:1705.08741 (virtual batches).

    Args:
        num_features: Number of channels :math:`C`.
        eps: Number added to the variance.
        momentum: Weight of a batch in the running statistics; ``None`` for a cumulative average.
        affine: Whether to learn :math:`\gamma` (``weight``, initially 1) and :math:`\beta`
            (``bias``, initially 0).
        track_running_stats: Whether to keep running statistics. Without them, evaluation uses the
            statistics of the batch.
        device: Device of the parameters and buffers.
        dtype: Dtype of the parameters and buffers.
        bias: Whether to learn :math:`\beta` too, if ``affine`` is true. ``False`` needs a version
            of torch whose :class:`torch.nn.BatchNorm2d` has this argument.
        activation: ``None``, ``"relu"``, ``"relu6"``, ``"leaky_relu"``, ``"elu"``, ``"selu"``,
            ``"silu"``, ``"hardswish"`` or ``"gelu"``.
        activation_parameter: Slope of leaky_relu (default 0.01) or alpha of elu (default 1.0).
        virtual_batch_size: Largest number of samples in a virtual batch; ``None`` for the whole
            batch.

    Shape:
        - Input: :math:`(N, C, H, W)`, any floating dtype, contiguous or channels last.
        - Residual: shape and dtype of the input, or ``None``.
        - Output: shape, dtype and memory format of the input.

    Raises:
        ValueError: If ``activation`` is unknown or ``virtual_batch_size`` is not a positive
            integer; from ``forward``, if the input has another number of dimensions, or in training
            only one value per channel.
        RuntimeError: From ``forward``, if the shapes or dtypes of input, residual and parameters
            don't match.

    Example:
        >>> from lightning_practices.nn import BatchNorm2d
        >>> norm = BatchNorm2d(16, activation="relu")
        >>> x, residual = torch.randn(2, 8, 16, 4, 4).unbind()
        >>> y = norm(x, residual)
        >>> torch.allclose(y, (nn.BatchNorm2d(16)(x) + residual).relu(), atol=1e-5)
        True
    """


class BatchNorm1d(FusedBatchNorm, nn.BatchNorm1d):
    """:class:`BatchNorm2d` for inputs of shape :math:`(N, C)` or :math:`(N, C, L)`.

    Equation, arguments and errors are those of :class:`BatchNorm2d`.

    Example:
        >>> from lightning_practices.nn import BatchNorm1d
        >>> y = BatchNorm1d(16)(5 + 3 * torch.randn(32, 16))
        >>> y.shape, torch.allclose(y.mean(0), torch.zeros(16), atol=1e-5)
        (torch.Size([32, 16]), True)
    """


class BatchNorm3d(FusedBatchNorm, nn.BatchNorm3d):
    """:class:`BatchNorm2d` for inputs of shape :math:`(N, C, D, H, W)`.

    Equation, arguments and errors are those of :class:`BatchNorm2d`.

    Example:
        >>> from lightning_practices.nn import BatchNorm3d
        >>> y = BatchNorm3d(4)(5 + 3 * torch.randn(8, 4, 2, 6, 6))
        >>> y.shape, torch.allclose(y.mean((0, 2, 3, 4)), torch.zeros(4), atol=1e-5)
        (torch.Size([8, 4, 2, 6, 6]), True)
    """
