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

    where :math:`m` is 0 on squares of ``block_size`` whose corners are drawn at the rate
    :math:`\gamma = p \, HW / (k^2 (H - k + 1) (W - k + 1))`. Convolutional features are
    correlated, so that dropping single ones hides little. Still a
    :class:`torchvision.ops.DropBlock2d`, with even blocks and maps smaller than a block allowed.
    The paper ramps ``p`` from 0: see :class:`lightning_practices.callbacks.DropRateSchedule`.

    Ghiasi, Lin and Le, 2018, *DropBlock: A regularization method for convolutional networks*,
    arXiv:1810.12890.

    Args:
        p: About the share of elements that is dropped; may be assigned at any time.
        block_size: Side of a square.
        inplace: Overwrite the input.
        eps: Added to the number of kept elements.
        per_channel: Draw for each channel; otherwise one mask for all channels of a sample.

    Shape:
        - Input: :math:`(N, C, H, W)`, any floating dtype, contiguous or channels last.
        - Output: as the input.

    Raises:
        ValueError: From ``forward``, if ``p`` is outside ``[0, 1]``, ``block_size`` is below 1 or
            the input has another dimension.
    """

    block_size: int
    inplace: bool
    eps: float
    per_channel: bool = True  # on the class, for layers that became fused by a change of class

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
