"""Layer normalisation of images' channels over the fused kernel."""

from torch import Tensor
from torchvision.models import convnext
from typing_extensions import override

import lightning_kernels
from lightning_kernels import Autocast


class LayerNorm2d(convnext.LayerNorm2d):  # type: ignore[misc]  # untyped
    r"""Normalise the channels of every pixel, in one kernel each way and without a copy.

    .. math::
        y = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma + \beta

    over the channels, see :class:`LayerNorm`. Still torchvision's class, of which it takes the
    constructor, ``state_dict`` and the layout of the result: channels last, however the input lies.
    An input with its pixels last (contiguous) is read as it is up to 256 channels, where torch's
    layer norm copies it first; wider ones are copied.

    Liu et al., 2022, *A ConvNet for the 2020s*, arXiv:2201.03545.

    Args:
        normalized_shape: How many channels there are.
        eps: Added to the variance.
        elementwise_affine: Learn :math:`\gamma` (``weight``, ones at first).
        bias: Learn :math:`\beta` (``bias``, zeros at first) too.
        device: Of the parameters.
        dtype: Of the parameters.

    Attributes:
        autocast: As in :func:`lightning_kernels.layer_norm`.

    Shape:
        - Input: ``(N, C, H, W)``, any floating dtype.
        - Output: as the input, its dtype included (torch's is float32 under a GPU's autocast).

    Raises:
        RuntimeError: From ``forward``, if the input has other dimensions or channels.
        NotImplementedError: From ``forward``, if its type is not floating.
    """

    autocast: Autocast = "input"

    @override
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise RuntimeError(f"LayerNorm2d expects (N, C, H, W), but got {list(x.shape)}")
        y = lightning_kernels.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps,
            autocast=self.autocast,
        )  # fmt: skip
        return y.permute(0, 3, 1, 2)
