"""Group normalisation by the fused kernels."""

from typing import Any

from torch import Tensor, nn
from typing_extensions import override

import lightning_kernels
from lightning_kernels import Autocast
from lightning_practices._arguments import check_flag, check_number, check_whole
from lightning_practices.nn._fused_layer import FusedLayer, without_bias


class GroupNorm(FusedLayer, nn.GroupNorm):
    r"""Normalise groups of neighbouring channels of each sample.

    .. math::
        y = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma + \beta

    Mean and biased variance are taken over the channels of a group and all pixels, in training and
    in evaluation, in float32 for every input dtype. Inputs may be contiguous or channels last. The
    layer is a subclass of :class:`torch.nn.GroupNorm` and has its arguments, ``state_dict``
    and ``repr``, so each layer loads the other's checkpoints.

    Wu and He, 2018, *Group Normalization*, arXiv:1803.08494.

    Args:
        num_groups: Number of groups, a divisor of ``num_channels``.
        num_channels: Number of channels :math:`C`.
        eps: Number added to the variance.
        affine: Whether to learn :math:`\gamma` (``weight``, initially 1) and :math:`\beta`
            (``bias``, initially 0).
        bias: Whether to learn :math:`\beta` too, if ``affine`` is true. ``False`` needs a version
            of torch whose :class:`torch.nn.GroupNorm` has this argument.
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
        ValueError: If ``num_groups`` does not divide ``num_channels``, or ``eps`` is negative; from
            ``forward``, if a group has only one value.
        RuntimeError: From ``forward``, if the input does not have :math:`C` channels.
        NotImplementedError: From ``forward``, if the input's dtype is not floating.

    Example:
        >>> from lightning_practices.nn import GroupNorm
        >>> y = GroupNorm(4, 16)(5 + 3 * torch.randn(2, 16, 8, 8))
        >>> groups = y.view(2, 4, -1)
        >>> torch.allclose(groups.mean(2), torch.zeros(2, 4), atol=1e-5)
        True
        >>> torch.allclose(groups.var(2, correction=0), torch.ones(2, 4), atol=1e-4)
        True
    """

    autocast: Autocast = "input"

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(
            check_whole("num_groups", num_groups, 1),
            check_whole("num_channels", num_channels, 0),
            check_number("eps", eps, ge=0),
            check_flag("affine", affine),
            device,
            dtype,
            **without_bias(bias),
        )

    @override
    def forward(self, input: Tensor) -> Tensor:
        return lightning_kernels.group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps, autocast=self.autocast
        )
