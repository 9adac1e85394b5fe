"""Layer normalisation of the channels of images, by the fused kernel."""

from typing import Any

from torch import Tensor
from torchvision.models import convnext
from typing_extensions import override

import lightning_kernels
from lightning_practices.nn._fused_layer import refuse_proxy
from lightning_practices.nn._layer_norm import FusedLayerNorm


class LayerNorm2d(FusedLayerNorm, convnext.LayerNorm2d):  # type: ignore[misc]  # untyped
    r"""Normalise the channels of every pixel. Forward and backward are one kernel each.

    .. math::
        y = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma + \beta

    where mean and variance are taken over the channels, see :class:`LayerNorm`. The layer is a
    subclass of torchvision's class with its arguments and ``state_dict``. As in
    torchvision the output is channels last, whatever the input's memory format. A contiguous input
    of up to 256 channels is read in place, where torch's layer norm copies it first. A contiguous
    input of more channels is copied.

    Liu et al., 2022, *A ConvNet for the 2020s*, arXiv:2201.03545.

    Args:
        normalized_shape: Number of channels.
        eps: Number added to the variance.
        elementwise_affine: Whether to learn :math:`\gamma` (``weight``, initially 1).
        bias: Whether to learn :math:`\beta` (``bias``, initially 0) too.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Attributes:
        autocast: Dtype of the output under autocast, as in :func:`lightning_kernels.layer_norm`.

    Shape:
        - Input: ``(N, C, H, W)``, any floating dtype.
        - Output: shape and dtype of the input (torch returns float32 under autocast on a GPU).

    Raises:
        RuntimeError: From ``forward``, if the input has another number of dimensions or channels.
        NotImplementedError: From ``forward``, if the input's dtype is not floating.

    Example:
        >>> from lightning_practices.nn import LayerNorm2d
        >>> y = LayerNorm2d(32)(5 + 3 * torch.randn(2, 32, 8, 8))
        >>> y.shape, torch.allclose(y.mean(1), torch.zeros(2, 8, 8), atol=1e-5)
        (torch.Size([2, 32, 8, 8]), True)
    """

    @override
    def forward(self: Any, x: Tensor) -> Tensor:
        refuse_proxy(x)
        if x.dim() != 4:
            raise RuntimeError(f"LayerNorm2d expects (N, C, H, W), but got {list(x.shape)}")
        y = lightning_kernels.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps,
            autocast=self.autocast,
        )  # fmt: skip
        return y.permute(0, 3, 1, 2)
