"""DropBlock by the fused kernels."""

from torch import Tensor
from torchvision import ops
from typing_extensions import override

import lightning_kernels
from lightning_practices._arguments import check_flag, check_number, check_whole
from lightning_practices.nn._scheduled_rate import ScheduledRate


class DropBlock2d(ScheduledRate, ops.DropBlock2d):  # type: ignore[misc]  # untyped
    r"""Zero squares of a feature map at random while training, and rescale the rest.

    .. math::
        y_i = x_i \, m_i \, \frac{\mathrm{numel}(m)}{\epsilon + \sum_j m_j}

    where the mask :math:`m` is 0 on squares of side :math:`k` (``block_size``) whose corners are
    drawn at the rate :math:`\gamma = p \, HW / (k^2 (H - k + 1) (W - k + 1))`. A block that is
    larger than the map is cut to the smaller edge of the map. Neighbouring features of a
    convolution are correlated, so dropping single features removes little information. It is a
    subclass of :class:`torchvision.ops.DropBlock2d` that also allows even block sizes. The paper
    raises ``p`` from 0 during training, as :class:`lightning_practices.callbacks.DropRateSchedule`
    does.

    Ghiasi, Lin and Le, 2018, *DropBlock: A regularization method for convolutional networks*,
    arXiv:1810.12890.

    Args:
        p: Approximate share of dropped elements. May be assigned at any time.
        block_size: Side of a square, in elements.
        inplace: Whether to overwrite the input.
        eps: Number :math:`\epsilon` added to the number of kept elements.
        per_channel: Whether each channel has its own mask. Otherwise all channels of a sample share
            one mask.

    Shape:
        - Input: :math:`(N, C, H, W)`, any floating dtype, contiguous or channels last.
        - Output: shape, dtype and memory format of the input.

    Raises:
        ValueError: If ``p`` is outside ``[0, 1]``, ``block_size`` is below 1 or ``eps`` is
            negative; from ``forward``, if the input has another number of dimensions.

    Example:
        >>> from lightning_practices.nn import DropBlock2d
        >>> x = torch.ones(8, 16, 20, 20)
        >>> y = DropBlock2d(0.1, block_size=5)(x)
        >>> bool(0.05 < (y == 0).float().mean() < 0.15)  # the dropped share
        True
        >>> round(y.mean().item(), 4)  # the rest is rescaled
        1.0
    """

    block_size: int
    inplace: bool
    eps: float
    per_channel: bool = True  # a class attribute, since `surgery.fuse` runs no constructor

    def __init__(
        self,
        p: float,
        block_size: int,
        inplace: bool = False,
        eps: float = 1e-06,
        *,
        per_channel: bool = True,
    ) -> None:
        super().__init__(
            check_number("p", p, ge=0, le=1),
            check_whole("block_size", block_size, 1),
            check_flag("inplace", inplace),
            check_number("eps", eps, ge=0),
        )
        self.per_channel = check_flag("per_channel", per_channel)

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
    """:class:`DropBlock2d` with cubes, for inputs of shape :math:`(N, C, D, H, W)`.

    Arguments and errors are those of :class:`DropBlock2d`. A block that is larger than the volume
    is cut to the smallest edge of the volume.

    Example:
        >>> from lightning_practices.nn import DropBlock3d
        >>> x = torch.ones(4, 8, 10, 10, 10)
        >>> y = DropBlock3d(0.1, block_size=3)(x)
        >>> len(y.unique()), round(y.mean().item(), 4)  # dropped or rescaled; the mean of x
        (2, 1.0)
    """

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
