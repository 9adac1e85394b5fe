"""Group normalisation by the fused kernels."""

from torch import Tensor, nn
from typing_extensions import override

import lightning_kernels
from lightning_kernels import Autocast
from lightning_practices.nn._fused_layer import FusedLayer


class GroupNorm(FusedLayer, nn.GroupNorm):
    r"""Normalise groups of neighbouring channels of each sample.

    .. math::
        y = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma + \beta

    Mean and biased variance are taken over the channels of a group and all pixels, in training and
    in evaluation, in float32 for every input dtype. Inputs may be contiguous or channels last. The
    layer is a subclass of :class:`torch.nn.GroupNorm` and inherits its constructor, ``state_dict``
    and ``repr``, so each layer loads the other's checkpoints.

    Wu and He, 2018, *Group Normalization*, arXiv:1803.08494.

    Args:
        num_groups: Number of groups, a divisor of ``num_channels``.
        num_channels: Number of channels :math:`C`.
        eps: Number added to the variance.
        affine: Whether to learn :math:`\gamma` (``weight``, initially 1) and :math:`\beta`
            (``bias``, initially 0).
        bias: Whether to learn :math:`\beta` too, if ``affine`` is true.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Attributes:
        autocast: Dtype of the output under autocast, as in :func:`lightning_kernels.group_norm`.
            ``"match"`` returns float32 wherever torch does.

    Shape:
        - Input: :math:`(N, C, *)`, any floating dtype.
        - Output: shape, memory format and dtype of the input (torch returns float32 under autocast
          on a GPU).

    Raises:
        ValueError: If ``num_groups`` does not divide ``num_channels``; from ``forward``, if a group
            has only one value.
        RuntimeError: From ``forward``, if the input does not have :math:`C` channels.
        NotImplementedError: From ``forward``, if the input's dtype is not floating.
    """

    autocast: Autocast = "input"

    @override
    def forward(self, input: Tensor) -> Tensor:
        return lightning_kernels.group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps, autocast=self.autocast
        )
