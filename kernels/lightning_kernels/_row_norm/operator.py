"""Layer norm and RMS norm as one operator. It takes one pass over the rows in each direction."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_kernels._core.gradients import empty_gradients, only_needed
from lightning_kernels._core.launch import cdiv, launch, multiprocessor_count
from lightning_kernels._core.layout import contiguous
from lightning_kernels._core.operator import Operator
from lightning_kernels._core.partial_sums import sum_partials
from lightning_kernels._core.row_tiles import resident, stages_of, tile_of_rows
from lightning_kernels._row_norm.kernels import (
    _long_row_norm_backward_kernel,
    _long_row_norm_forward_kernel,
    _long_row_norm_parameters_kernel,
    _row_norm_backward_kernel,
    _row_norm_forward_kernel,
)

# A program holds a row, its gradient, and the sums for weight and bias in registers. Rows of more
# than 8192 elements would spill registers (tests/test_machine_code.py).
_LONGEST = 8192
# A tile of transposed rows has at least 8 rows, so that 16 bytes or more are neighbours in memory.
_NEIGHBOURS = 8
# Warps of the backward kernel that a multiprocessor holds without spills: of layer norm (True) and
# RMS norm (False), by the number of pieces of a row. Transposed rows leave room for 8.
_WARPS = {True: {1: 16, 2: 16, 3: 12, 5: 16, 7: 8}, False: {1: 20, 2: 20, 3: 16, 5: 16, 7: 12}}
# Longer transposed rows, in tiles of 8 rows, would spill registers.
_LONGEST_TRANSPOSED = 256
# The loops over long rows copy the next blocks to shared memory while they compute.
_LONG_BLOCK = {"BLOCK_SIZE": 2048, "STAGES": 2, "num_warps": 4}
_COLUMNS = {"BLOCK_SIZE": 1024, "STAGES": 3, "num_warps": 4}


class Rows(NamedTuple):
    """The positions of a tensor's rows in memory.

    :mod:`lightning_kernels._row_norm.kernels` defines the attributes by an equation.
    """

    inner: int
    last: int
    stride_outer: int
    stride_inner: int
    stride_last: int
    stride_column: int = 1

    @property
    def transposed(self) -> bool:
        """Whether the elements of a row are not neighbours in memory."""
        return self.stride_column != 1

    def forward_tile(self, num_rows: int, size: int) -> dict[str, int]:
        """Return the constants of the forward kernel.

        All rows in a tile of transposed rows have the same outer and the same inner index.
        """
        if self.transposed:
            return tile_of_rows(self.last, size, 48, least=_NEIGHBOURS)
        return tile_of_rows(num_rows, size, 24)

    def backward_tile(self, num_rows: int, size: int) -> dict[str, int]:
        """Return the constants of the backward kernel, which holds more per element."""
        if self.transposed:
            return tile_of_rows(self.last, size, 20, least=_NEIGHBOURS)
        return tile_of_rows(num_rows, size, 16, most=2)

    def places(self) -> tuple[int, ...]:
        """Return the arguments of the kernels for long rows, which can't be transposed."""
        return self[:-1]


def rows_of(x: Tensor, size: int) -> tuple[Tensor, Rows]:
    """Return ``x`` and the positions of its rows. ``x`` is copied if kernels can't read it.

    Kernels can read a contiguous tensor and two kinds of views: heads of a larger projection, and
    ``x.movedim(1, -1)`` of a contiguous ``(N, C, *)``, whose rows are transposed.
    """
    if x.is_contiguous() or (place := _place_of_rows(x, size)) is None:
        return x.contiguous(), Rows(1, 1, size, 0, 0)
    return x, place


def _place_of_rows(x: Tensor, size: int) -> Rows | None:
    """Return the positions of the rows of ``x``, or ``None`` if kernels would read them slowly."""
    stride_column, dims = 1, x.dim()
    if x.shape[-1] == size > 1:
        stride_column, dims = x.stride(-1), x.dim() - 1
    else:
        expected = 1
        while expected < size:  # skip the dimensions of a row, from the last one on
            dims -= 1
            if x.shape[dims] > 1 and x.stride(dims) != expected:
                return None
            expected *= x.shape[dims]
    # Sizes and strides of the dimensions before the row. Neighbouring dimensions are merged if one
    # stride describes both.
    lengths, strides = [1, 1, 1], [0, 0, 0]
    for length, stride in zip(x.shape[:dims], x.stride()[:dims], strict=True):
        if length > 1 and strides[-1] == length * stride and lengths[-1] > 1:
            lengths[-1], strides[-1] = lengths[-1] * length, stride
        elif length > 1:
            lengths.append(length)
            strides.append(stride)
    if len(lengths) > 6:
        return None
    (_, inner, last), (stride_outer, stride_inner, stride_last) = lengths[-3:], strides[-3:]
    if stride_column != 1:
        tiled = stride_last == 1 and last >= _NEIGHBOURS and size <= _LONGEST_TRANSPOSED
        if not tiled:
            return None
    elif inner == last == 1:
        return Rows(1, 1, stride_last, 0, 0)
    return Rows(inner, last, stride_outer, stride_inner, stride_last, stride_column)


def _tiles(num_rows: int, rows: Rows, tile: dict[str, int]) -> int:
    """Return the number of tiles of a launch."""
    if rows.transposed:
        return num_rows // rows.last * cdiv(rows.last, tile["ROWS"])
    return cdiv(num_rows, tile["ROWS"])


def _forward(
    x: Tensor, size: int, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    weight, bias = contiguous(weight, bias)
    y, statistics = _fake(x, size, weight, bias, eps, centred, dtype)
    x, rows = rows_of(x, size)
    num_rows = x.numel() // size
    arguments = (x, weight, bias, y, statistics, num_rows, size, eps)
    if size > _LONGEST:
        launch(
            _long_row_norm_forward_kernel, (num_rows,), x.device, *arguments, *rows.places(),
            CENTRED=centred, **_LONG_BLOCK,
        )  # fmt: skip
    else:
        tile = rows.forward_tile(num_rows, size)
        launch(
            _row_norm_forward_kernel, (_tiles(num_rows, rows, tile),), x.device, *arguments, *rows,
            CENTRED=centred, TRANSPOSED=rows.transposed, **tile,
        )  # fmt: skip
    return y, statistics


def _fake(
    x: Tensor, size: int, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Allocate the output and the statistics of rows: means if centred, then 1/sqrt(...)."""
    y = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    return y, x.new_empty((1 + centred, x.numel() // size), dtype=torch.float32)


def _forward_of_backward(
    grad: Tensor, x: Tensor, size: int, weight: Tensor | None, bias: Tensor | None,
    statistics: Tensor, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, weight and bias; empty where ``needs`` is False."""
    grad = grad.contiguous()
    weight = None if weight is None else weight.contiguous()
    gradients = _fake_of_backward(grad, x, size, weight, bias, statistics, needs)
    x, rows = rows_of(x, size)
    num_rows = x.numel() // size
    needed = only_needed(gradients, needs)
    backward = _backward_of_long_rows if size > _LONGEST else _backward_of_rows
    partials = backward(grad, x, weight, statistics, needed, num_rows, size, rows)
    sum_partials(partials, needed[1:])
    return gradients


def _partials(x: Tensor, count: int, size: int, needed: list[Tensor | None]) -> list[Tensor | None]:
    """Allocate ``count`` rows of partial sums for each needed gradient of weight and bias."""
    return [
        None if gradient is None else x.new_empty((count, size), dtype=torch.float32)
        for gradient in needed[1:]
    ]


def _backward_of_rows(
    grad: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor,
    needed: list[Tensor | None], num_rows: int, size: int, rows: Rows,
) -> list[Tensor | None]:  # fmt: skip
    centred = len(statistics) == 2
    tile = rows.backward_tile(num_rows, size)
    warps = 8 if rows.transposed else _WARPS[centred][tile["PIECES"]]
    programs, limit = resident(warps, tile)
    num_programs = min(_tiles(num_rows, rows, tile), multiprocessor_count(x.device) * programs)
    partials = _partials(x, num_programs, size, needed)
    launch(
        _row_norm_backward_kernel, (num_programs,), x.device,
        grad, x, weight, statistics, needed[0], *partials, num_rows, size, *rows,
        CENTRED=centred, TRANSPOSED=rows.transposed, STAGES=stages_of(tile, grad, x),
        **tile, **limit,
    )  # fmt: skip
    return partials


def _backward_of_long_rows(
    grad: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor,
    needed: list[Tensor | None], num_rows: int, size: int, rows: Rows,
) -> list[Tensor | None]:  # fmt: skip
    centred = len(statistics) == 2
    if needed[0] is not None:
        launch(
            _long_row_norm_backward_kernel, (num_rows,), x.device,
            grad, x, weight, statistics, needed[0], num_rows, size, *rows.places(),
            CENTRED=centred, **_LONG_BLOCK,
        )  # fmt: skip
    blocks = cdiv(size, _COLUMNS["BLOCK_SIZE"])
    stripes = min(num_rows, max(1, 8 * multiprocessor_count(x.device) // blocks))
    partials = _partials(x, stripes, size, needed)
    if any(partial is not None for partial in partials):
        launch(
            _long_row_norm_parameters_kernel, (blocks, stripes), x.device,
            grad, x, statistics, *partials, num_rows, size, *rows.places(),
            CENTRED=centred, **_COLUMNS,
        )  # fmt: skip
    return partials


def _fake_of_backward(
    grad: Tensor, x: Tensor, size: int, weight: Tensor | None, bias: Tensor | None,
    statistics: Tensor, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_x, grad_weight, grad_bias = empty_gradients(x, (x, weight, bias), needs)
    return grad_x, grad_weight, grad_bias


_row_norm_backward = Operator(
    "row_norm_backward",
    "(Tensor grad, Tensor x, SymInt size, Tensor? weight, Tensor? bias, Tensor statistics,"
    " bool[3] needs) -> (Tensor, Tensor, Tensor)",
    forward=_forward_of_backward,
    fake=_fake_of_backward,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.size, weight, bias, ctx.eps, ctx.centred, _ = inputs
    ctx.save_for_backward(x, weight, bias, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    x, weight, bias, statistics = ctx.saved_tensors
    if torch.is_grad_enabled():  # the backward pass runs with create_graph=True
        gradients = row_norm_gradients(grad, x, ctx.size, weight, bias, ctx.eps, ctx.centred)
    else:
        needs = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
        results = _row_norm_backward(grad, x, ctx.size, weight, bias, statistics, needs)
        gradients = tuple(only_needed(results, needs))
    grad_x, grad_weight, grad_bias = gradients
    return grad_x, None, grad_weight, grad_bias, None, None, None


def row_norm_gradients(
    grad: Tensor, x: Tensor, size: int, weight: Tensor | None, bias: Tensor | None, eps: float,
    centred: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Return the gradients by torch's functions, which can be differentiated again."""
    rows, grad_rows = x.reshape(-1, size).float(), grad.reshape(-1, size).float()
    if centred:
        rows = rows - rows.mean(1, keepdim=True)
    rstd = (rows.square().mean(1, keepdim=True) + eps).rsqrt()
    normalised = rows * rstd
    grad_weight = grad_bias = None
    if weight is not None:
        grad_weight = (grad_rows * normalised).sum(0).reshape(weight.shape).to(weight.dtype)
    if bias is not None:
        grad_bias = grad_rows.sum(0).reshape(bias.shape).to(bias.dtype)
    scaled = grad_rows if weight is None else grad_rows * weight.reshape(-1).float()
    grad_x = scaled - normalised * (scaled * normalised).mean(1, keepdim=True)
    if centred:
        grad_x = grad_x - scaled.mean(1, keepdim=True)
    grad_x = grad_x * rstd
    return grad_x.reshape(x.shape).to(x.dtype), grad_weight, grad_bias


row_norm_operator = Operator(
    "row_norm",
    "(Tensor x, SymInt size, Tensor? weight, Tensor? bias, float eps, bool centred,"
    " ScalarType? dtype) -> (Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
