"""Instance normalisation by the fused kernels."""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from typing_extensions import override

import lightning_kernels
from lightning_practices._arguments import check_flag, check_number, check_whole
from lightning_practices.nn._fused_layer import FusedLayer, refuse_proxy, without_bias


class FusedInstanceNorm(FusedLayer, _InstanceNorm):
    """Base class of the fused instance norms. See :class:`InstanceNorm2d`."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(
            check_whole("num_features", num_features, 0),
            check_number("eps", eps, ge=0),
            momentum if momentum is None else check_number("momentum", momentum, ge=0),  # type: ignore[arg-type]  # torch allows None
            check_flag("affine", affine),
            check_flag("track_running_stats", track_running_stats),
            device,
            dtype,
            **without_bias(bias),
        )

    @override
    def _check_input_dim(self, input: Tensor) -> None:
        refuse_proxy(input)  # torch's forward calls this method first
        super()._check_input_dim(input)  # type: ignore[no-untyped-call]

    @override
    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        """Normalise a batch. Torch's ``forward`` has checked it, and unsqueezed a single sample."""
        return lightning_kernels.instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
        )


class InstanceNorm2d(FusedInstanceNorm, nn.InstanceNorm2d):
    r"""Normalise each channel of each sample.

    .. math::
        y = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma + \beta

    Mean and biased variance are taken over the pixels, in float32 for every input dtype. Inputs may
    be contiguous or channels last. The layer is a subclass of :class:`torch.nn.InstanceNorm2d` and
    has its arguments, ``state_dict`` and ``repr``, so each layer loads the other's
    checkpoints. With ``track_running_stats`` evaluation uses the running statistics, as
    :class:`BatchNorm2d` does.

    Ulyanov et al., 2016, *Instance Normalization: The Missing Ingredient for Fast Stylization*,
    arXiv:1607.08022.

    Args:
        num_features: Number of channels :math:`C`.
        eps: Number added to the variance.
        momentum: Weight of a batch in the running statistics. With ``None`` they are not updated.
        affine: Whether to learn :math:`\gamma` (``weight``, initially 1) and :math:`\beta`
            (``bias``, initially 0).
        track_running_stats: Whether to keep running statistics, and use them in evaluation.
        device: Device of the parameters and buffers.
        dtype: Dtype of the parameters and buffers.
        bias: Whether to learn :math:`\beta` too, as for :class:`GroupNorm`.

    Shape:
        - Input: :math:`(N, C, H, W)` or :math:`(C, H, W)`, any floating dtype.
        - Output: shape, dtype and memory format of the input.

    Raises:
        ValueError: If ``eps`` is negative; from ``forward``, if the input has another number of
            dimensions, only one pixel per channel or, with ``affine``, another number of channels.
        NotImplementedError: From ``forward``, if the input's dtype is not floating.

    Example:
        >>> from lightning_practices.nn import InstanceNorm2d
        >>> y = InstanceNorm2d(4)(5 + 3 * torch.randn(2, 4, 8, 8))
        >>> torch.allclose(y.mean((2, 3)), torch.zeros(2, 4), atol=1e-5)
        True
        >>> torch.allclose(y.var((2, 3), correction=0), torch.ones(2, 4), atol=1e-4)
        True
    """


class InstanceNorm1d(FusedInstanceNorm, nn.InstanceNorm1d):
    """:class:`InstanceNorm2d` for inputs of shape :math:`(N, C, L)` or :math:`(C, L)`.

    Equation, arguments and errors are those of :class:`InstanceNorm2d`.

    Example:
        >>> from lightning_practices.nn import InstanceNorm1d
        >>> y = InstanceNorm1d(4)(5 + 3 * torch.randn(2, 4, 100))
        >>> y.shape, torch.allclose(y.mean(2), torch.zeros(2, 4), atol=1e-5)
        (torch.Size([2, 4, 100]), True)
    """


class InstanceNorm3d(FusedInstanceNorm, nn.InstanceNorm3d):
    """:class:`InstanceNorm2d` for inputs :math:`(N, C, D, H, W)` or :math:`(C, D, H, W)`.

    Equation, arguments and errors are those of :class:`InstanceNorm2d`.

    Example:
        >>> from lightning_practices.nn import InstanceNorm3d
        >>> y = InstanceNorm3d(4)(5 + 3 * torch.randn(2, 4, 6, 6, 6))
        >>> y.shape, torch.allclose(y.mean((2, 3, 4)), torch.zeros(2, 4), atol=1e-5)
        (torch.Size([2, 4, 6, 6, 6]), True)
    """
