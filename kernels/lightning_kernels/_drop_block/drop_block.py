"""DropBlock in two and three dimensions."""

from torch import Tensor

from lightning_kernels._core.crossover import pays
from lightning_kernels._core.dispatch import runs_triton
from lightning_kernels._core.parameters import check_eps, check_floating
from lightning_kernels._core.random import reserve
from lightning_kernels._core.rate import resolve_rate
from lightning_kernels._drop_block.aten import aten_drop_block
from lightning_kernels._drop_block.layout import seeds_per_rate
from lightning_kernels._drop_block.operator import drop_block_operator

_LARGEST_SAMPLE = 2**30  # elements; inside a sample the kernels compute offsets in 32 bits
_LARGEST_WIDTH = 2**14  # elements; a tile of the mask holds whole rows of four planes


def drop_block2d(
    input: Tensor,
    p: float | Tensor,
    block_size: int,
    inplace: bool = False,
    eps: float = 1e-6,
    training: bool = True,
    *,
    per_channel: bool = True,
) -> Tensor:
    r"""Zero random blocks of each map, about a share ``p`` of it, and rescale the rest.

    .. math:: y = x \, m \, \frac{|m|}{\epsilon + \sum m}, \quad
        \gamma = p \, \frac{H W}{k^2 (H - k + 1) (W - k + 1)}

    A block of k x k elements, where k = min(``block_size``, H, W), fits into a map at
    (H - k + 1) (W - k + 1) places. A block is dropped at each place with probability gamma,
    independently. The mask m is 0 in dropped blocks and 1 elsewhere. Blocks overlap, so the dropped
    share is a little less than ``p``. The scale is one number for the whole batch, computed from
    the exact count of kept elements. If no element is kept, the result is 0.

    If k is odd, the result equals that of :func:`torchvision.ops.drop_block2d` in distribution;
    torchvision refuses an even k. timm's ``drop_block_2d`` is another function: it also drops
    blocks that reach beyond the map, and a larger share than ``p`` near its edges.

    The mask is a function of torch's seed, its Philox offset, the sample, the channel and the place
    in the map. It does not depend on the memory layout. The graph keeps the mask as bits, each row
    padded to 8, 16 or a multiple of 32 bits, and counts of the bits. The result is composed of
    torch's functions where the kernels do not run (see :func:`lightning_kernels.route`), for rows
    of more than 2**14 elements and for samples of more than 2**30. On the CPU this composition
    mostly draws the dropped blocks alone, and the graph keeps one byte per element. Under a
    compiler and on other devices it draws a random number for each place.

    Args:
        input: Input of shape ``(N, C, H, W)``, any strides, floating point.
        p: Share of elements to drop, in ``[0, 1]``: a number, or a tensor of one float32 on the
            device of ``input`` (see :func:`lightning_kernels.dropout`).
        block_size: Edge of a block, in elements.
        inplace: Whether to write the result over ``input``.
        eps: Number added to the count of kept elements, against a division by 0.
        training: Whether to drop. Otherwise ``input`` itself is returned.
        per_channel: Whether each channel has its own blocks, as in torchvision. Otherwise all
            channels of a sample share their blocks, as in the paper.

    Returns:
        Tensor of the shape and dtype of ``input``, and of its strides if ``input`` is dense. It is
        ``input`` itself if nothing is dropped. As in torchvision, dropped nan and infinity become
        nan.

    Raises:
        NotImplementedError: If ``input`` is not floating point.
        RuntimeError: If ``p`` is a tensor, but not one float32
            on the device of ``input`` without gradient.
        ValueError: If ``p`` is outside ``[0, 1]`` or nan, ``input`` does not have four dimensions,
            ``block_size`` is not a positive integer, or ``eps`` is negative.

    Example:
        >>> from lightning_kernels import drop_block2d
        >>> y = drop_block2d(torch.ones(8, 16, 20, 20), 0.1, block_size=5)
        >>> bool(0.05 < (y == 0).float().mean() < 0.15)  # the dropped share
        True
        >>> round(y.mean().item(), 4)  # the rest is rescaled
        1.0

    References:
        Ghiasi et al., 2018, "DropBlock: a regularization method for convolutional networks",
        arXiv:1810.12890.
    """
    return _run("drop_block2d", 4, input, p, block_size, inplace, eps, training, per_channel)


def drop_block3d(
    input: Tensor,
    p: float | Tensor,
    block_size: int,
    inplace: bool = False,
    eps: float = 1e-6,
    training: bool = True,
    *,
    per_channel: bool = True,
) -> Tensor:
    r"""Zero random blocks of each volume, about a share ``p`` of it, and rescale the rest.

    The function is :func:`drop_block2d` for ``input`` of shape ``(N, C, D, H, W)``, with cubes as
    blocks. If their edge is odd, the result equals that of :func:`torchvision.ops.drop_block3d` in
    distribution.

    Example:
        >>> from lightning_kernels import drop_block3d
        >>> y = drop_block3d(torch.ones(4, 8, 10, 10, 10), 0.1, block_size=3)
        >>> len(y.unique()), round(y.mean().item(), 4)  # dropped or rescaled; the mean of the input
        (2, 1.0)
    """
    return _run("drop_block3d", 5, input, p, block_size, inplace, eps, training, per_channel)


def _run(
    function: str, dimensions: int, x: Tensor, p: float | Tensor, block_size: int, inplace: bool,
    eps: float, training: bool, per_channel: bool,
) -> Tensor:  # fmt: skip
    """Check the arguments. Call the operator, or torch's functions where the kernels do not run."""
    p, rate = resolve_rate(function, p, x)
    if x.dim() != dimensions:
        raise ValueError(
            f"{function} expects an input of {dimensions} dimensions, but got {list(x.shape)}"
        )
    if not isinstance(block_size, int) or isinstance(block_size, bool) or block_size < 1:
        raise ValueError(
            f"{function} expects block_size as an integer of at least 1, but got {block_size!r}"
        )
    check_eps(function, eps, least=0)
    if not training or (p == 0.0 and rate is None):
        return x
    check_floating(function, x)
    if x.numel() == 0:
        return x if inplace else x.clone()
    block = [min(block_size, *x.shape[2:])] * (dimensions - 2)
    if not (runs_triton(x) and _fits(x) and pays("drop_block", x)):
        ratio = seeds_per_rate(tuple(x.shape[2:]), tuple(block))
        gamma = p * ratio if rate is None else rate * ratio
        return aten_drop_block(x, gamma, tuple(block), inplace, eps, per_channel)
    arguments = (x, p, rate, block, float(eps), per_channel, *reserve(x))
    if inplace:
        return drop_block_operator.in_place(*arguments)
    return drop_block_operator(*arguments)[0]


def _fits(x: Tensor) -> bool:
    """Return whether the samples and the rows of ``x`` are small enough for the kernels."""
    return x[0].numel() <= _LARGEST_SAMPLE and x.shape[-1] <= _LARGEST_WIDTH
