"""Adds the partial sums of a parameter's gradient, of which each program stores one row."""

from collections.abc import Sequence

from torch import Tensor

from lightning_kernels._core.launch import cdiv, launch
from lightning_kernels._core.triton import tl, triton

_COLUMNS = 16


@triton.jit
def _sum_partials(
    partial_ptr, out_ptr, num_partials, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Sum the rows of ``partial`` in a fixed order and store them in the dtype of ``out``."""
    row = tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, num_partials, ROWS):
        in_bounds = (first + row < num_partials) & (column < size)
        place = (first + row).to(tl.int64) * size + column
        total += tl.load(partial_ptr + place, mask=in_bounds, other=0.0)
    result = tl.sum(total, axis=0, keep_dims=True).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + column, result, mask=column < size)


@triton.jit(do_not_specialize=["num_partials"])
def _sum_partials_kernel(
    first_partial_ptr, second_partial_ptr, first_out_ptr, second_out_ptr, num_partials, size,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sum the first partials in programs (i, 0) of the grid, the second in programs (i, 1)."""
    if tl.program_id(1) == 0:
        if first_partial_ptr is not None:
            _sum_partials(first_partial_ptr, first_out_ptr, num_partials, size, ROWS, COLUMNS)
    elif second_partial_ptr is not None:
        _sum_partials(second_partial_ptr, second_out_ptr, num_partials, size, ROWS, COLUMNS)


def sum_partials(partials: Sequence[Tensor | None], outs: Sequence[Tensor | None]) -> None:
    """Sum the rows of one or two tensors of partial sums, in a fixed order, in one launch.

    Args:
        partials: One or two float32 tensors of shape ``(rows, size)``. ``None`` in place of a
            tensor whose gradient is not needed.
        outs: For each of ``partials`` the tensor of ``size`` elements to write the sum to, or
            ``None``.
    """
    present = [partial for partial in partials if partial is not None]
    if not present:
        return
    num_partials, size = present[0].shape
    padding = [None] * (2 - len(partials))
    launch(
        _sum_partials_kernel, (cdiv(size, _COLUMNS), len(partials)), present[0].device,
        *partials, *padding, *outs, *padding, num_partials, size,
        ROWS=128, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
