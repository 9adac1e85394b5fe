"""DropBlock over the fused kernels."""

from torch import Tensor
from torchvision import ops
from typing_extensions import override

import lightning_kernels
from lightning_practices.nn._scheduled_rate import ScheduledRate


class DropBlock2d(ScheduledRate, ops.DropBlock2d):  # type: ignore[misc]  # untyped
    r"""Zero squares of a feature map at random while training, and rescale what is kept.

    .. math::
        y_i = x_i \, m_i \, \frac{\mathrm{numel}(m)}{\epsilon + \sum_j m_j}

    where the mask :math:`m` is 0 on squares of side :math:`k` (``block_size``). Their corners are
    drawn at the rate :math:`\gamma = p \, HW / (k^2 (H - k + 1) (W - k + 1))`. Neighbouring
    features of a convolution are correlated, so dropping single ones hides little. It is a subclass
    of :class:`torchvision.ops.DropBlock2d` that also allows even block sizes and feature maps
    smaller than a block. The paper raises ``p`` from 0 during training, as
    :class:`lightning_practices.callbacks.DropRateSchedule` does.

    Ghiasi, Lin and Le, 2018, *DropBlock: A regularization method for convolutional networks*,
    arXiv:1810.12890.

    Args:
        p: Expected share of dropped elements, about. May be assigned at any time.
        block_size: Side of a square.
        inplace: Overwrite the input.
        eps: Added to the number of kept elements.
        per_channel: Draw a mask for each channel. Otherwise all channels of a sample share one.

    Shape:
        - Input: :math:`(N, C, H, W)`, any floating dtype, contiguous or channels last.
        - Output: shape, dtype and memory format of the input.

    Raises:
        ValueError: From ``forward``, if ``p`` is outside ``[0, 1]``, ``block_size`` is below 1 or
            the input has another number of dimensions.
    """

    block_size: int
    inplace: bool
    eps: float
    per_channel: bool = True  # on the class, since `surgery.fuse` calls no constructor

    def __init__(
        self,
        p: float,
        block_size: int,
        inplace: bool = False,
        eps: float = 1e-06,
        *,
        per_channel: bool = True,
    ) -> None:
        super().__init__(p, block_size, inplace, eps)
        self.per_channel = per_channel

    @override
    def forward(self, input: Tensor) -> Tensor:
        return lightning_kernels.drop_block2d(
            input,
            self.current_rate(),
            self.block_size,
            self.inplace,
            self.eps,
            self.training,
            per_channel=self.per_channel,
        )


class DropBlock3d(DropBlock2d, ops.DropBlock3d):  # type: ignore[misc]  # untyped
    """:class:`DropBlock2d` of cubes, for inputs of shape :math:`(N, C, D, H, W)`."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        return lightning_kernels.drop_block3d(
            input,
            self.current_rate(),
            self.block_size,
            self.inplace,
            self.eps,
            self.training,
            per_channel=self.per_channel,
        )
