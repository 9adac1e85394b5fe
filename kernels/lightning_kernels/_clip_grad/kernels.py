"""The kernels of gradient clipping, for any number of tensors in one launch.

The tensors are cut into pieces. A table has a row for each piece: its address, its number of
elements and the code of its dtype. Program ``i`` of ``n`` takes every ``n``-th row from row ``i``
on. ``n`` depends on the device and not on the model, so there are few partial sums.

``NORM`` is ``"1"``, ``"2"``, ``"inf"``, or ``"p"`` for a norm of order ``power``.
"""

from lightning_kernels._clip_grad.tensor_table import COLUMNS
from lightning_kernels._core.triton import tl, triton

_COLUMNS = tl.constexpr(COLUMNS)
_REST = tl.constexpr(16)  # wide loads read a multiple of 16 elements; fewer than 16 remain


@triton.jit
def add_power(total, values, power, NORM: tl.constexpr):
    """Return ``total + |values| ** power``, or the maximum of both for norm inf. nan stays nan."""
    values = tl.abs(values)
    if NORM == "inf":
        return tl.where((values > total) | (values != values), values, total)
    if NORM == "1":
        return total + values
    if NORM == "2":
        return total + values * values
    return total + tl.exp2(power * tl.log2(values))


@triton.jit
def _nan_max(a, b):
    """Return the maximum of ``a`` and ``b``. nan stays nan."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def reduce_powers(total, NORM: tl.constexpr):
    """Reduce a block of totals to their sum, or to their maximum for norm inf."""
    if NORM == "inf":
        return tl.reduce(total, 0, _nan_max)
    return tl.sum(total, axis=0)


@triton.jit
def _join(a, b, NORM: tl.constexpr):
    """Return the sum of two totals, or their maximum for norm inf."""
    return _nan_max(a, b) if NORM == "inf" else a + b


@triton.jit
def _row(table_ptr, piece):
    """Return the table's row of a piece: address, number of elements, code of the dtype."""
    row_ptr = table_ptr + piece * _COLUMNS
    return tl.load(row_ptr), tl.load(row_ptr + 1).to(tl.int32), tl.load(row_ptr + 2)


@triton.jit
def _add_piece(
    total, rest, address, size, power,
    DTYPE: tl.constexpr, NORM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Add the powers of a piece's elements to ``total``, a block, and to ``rest``, 16 numbers.

    Wide loads read all elements but the last ones, fewer than 16, which go to ``rest``.
    """
    pointer = address.to(tl.pointer_type(DTYPE))
    aligned = tl.multiple_of(pointer, 16)
    whole = size // _REST * _REST
    for start in range(0, whole, BLOCK_SIZE):
        index = start + tl.arange(0, BLOCK_SIZE)
        values = tl.load(aligned + index, mask=index < whole, other=0.0).to(tl.float32)
        total = add_power(total, values, power, NORM)
    index = whole + tl.arange(0, _REST)
    values = tl.load(pointer + index, mask=index < size, other=0.0).to(tl.float32)
    return total, add_power(rest, values, power, NORM)


@triton.jit
def _norm_kernel(
    table_ptr, partial_ptr, pieces, power, NORM: tl.constexpr, BLOCK_SIZE: tl.constexpr
):
    """Store each program's partial sum of powers, or its maximum for norm inf."""
    total = tl.zeros((BLOCK_SIZE,), tl.float32)
    rest = tl.zeros((_REST,), tl.float32)
    for piece in range(tl.program_id(0), pieces, tl.num_programs(0)):
        address, size, code = _row(table_ptr, piece)
        if code == 0:
            total, rest = _add_piece(
                total, rest, address, size, power, tl.float32, NORM, BLOCK_SIZE
            )
        elif code == 1:
            total, rest = _add_piece(
                total, rest, address, size, power, tl.bfloat16, NORM, BLOCK_SIZE
            )
        else:
            total, rest = _add_piece(
                total, rest, address, size, power, tl.float16, NORM, BLOCK_SIZE
            )
    share = _join(reduce_powers(total, NORM), reduce_powers(rest, NORM), NORM)
    tl.store(partial_ptr + tl.program_id(0), share)


@triton.jit
def root(total, power, NORM: tl.constexpr):
    """Return the norm in float32, given the sum of powers, or the maximum for norm inf."""
    if NORM == "2":
        total = tl.sqrt(total)
    elif NORM == "p":
        total = tl.exp2(tl.log2(total.to(tl.float32)) / power)
    return total.to(tl.float32)


@triton.jit
def _total_norm(partial_ptr, partials, power, NORM: tl.constexpr, PARTIALS: tl.constexpr):
    """Return the norm, merged from the partial results. Every program computes the same number."""
    index = tl.arange(0, PARTIALS)
    shares = tl.load(partial_ptr + index, mask=index < partials, other=0.0)
    return root(reduce_powers(shares.to(tl.float64), NORM), power, NORM)


@triton.jit
def _limit(limit_ptr, max_norm):
    """Return the largest norm: loaded from ``limit_ptr`` if it is given, else ``max_norm``."""
    if limit_ptr is not None:
        max_norm = tl.load(limit_ptr)
    return max_norm


@triton.jit
def _grad_scale_kernel(
    partial_ptr, loss_scale_ptr, limit_ptr, norm_ptr, scale_ptr, found_inf_ptr,
    partials, max_norm, power, NORM: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    """Store the norm without the loss scale, the divisor of the gradients, and ``found_inf``.

    ``found_inf`` is 1 if the norm is nan or infinite, else 0.
    """
    total = _total_norm(partial_ptr, partials, power, NORM, PARTIALS)
    loss_scale = 1.0
    if loss_scale_ptr is not None:
        loss_scale = tl.load(loss_scale_ptr)
    total = total / loss_scale
    divisor = (total + 1e-6) / _limit(limit_ptr, max_norm)
    divisor = tl.where(divisor <= 1, 1.0, divisor)  # keeps nan, which tl.maximum would drop
    tl.store(norm_ptr, total)
    tl.store(scale_ptr, divisor * loss_scale)
    tl.store(found_inf_ptr, tl.where(total < float("inf"), 0.0, 1.0))


@triton.jit
def _scale(values, factor, ZERO: tl.constexpr):
    """Return ``values * factor`` in the dtype of ``values``."""
    scaled = values.to(tl.float32) * factor
    if ZERO:  # 0 * inf would be nan
        scaled = tl.where(factor == 0, 0.0, scaled)
    return scaled.to(values.dtype)


@triton.jit
def _scale_piece(
    address, size, factor, DTYPE: tl.constexpr, ZERO: tl.constexpr, BLOCK_SIZE: tl.constexpr
):
    """Multiply the elements of a piece by ``factor``, in place."""
    pointer = address.to(tl.pointer_type(DTYPE))
    aligned = tl.multiple_of(pointer, 16)
    whole = size // _REST * _REST
    for start in range(0, whole, BLOCK_SIZE):
        index = start + tl.arange(0, BLOCK_SIZE)
        values = tl.load(aligned + index, mask=index < whole)
        tl.store(aligned + index, _scale(values, factor, ZERO), mask=index < whole)
    index = whole + tl.arange(0, _REST)
    values = tl.load(pointer + index, mask=index < size)
    tl.store(pointer + index, _scale(values, factor, ZERO), mask=index < size)


@triton.jit
def _clip_norm_kernel(
    table_ptr, partial_ptr, total_ptr, limit_ptr, pieces, partials, max_norm, power,
    NONFINITE: tl.constexpr, NORM: tl.constexpr,
    PARTIALS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Store the norm of all gradients. Scale them so that their norm is at most ``max_norm``.

    No gradient is written if the norm is at most ``max_norm``.
    """
    total = _total_norm(partial_ptr, partials, power, NORM, PARTIALS)
    if tl.program_id(0) == 0:
        tl.store(total_ptr, total)
    max_norm = _limit(limit_ptr, max_norm)
    factor = max_norm / (total + 1e-6)
    finite = total < float("inf")
    writes = (factor >= 1) == 0  # True for nan, unlike factor < 1
    if NONFINITE == "skip":
        writes = writes & finite
    elif NONFINITE == "zero":
        factor = tl.where(finite, factor, 0.0)
        writes = writes | (finite == 0)
    ZERO: tl.constexpr = NONFINITE == "zero"
    if writes:
        for piece in range(tl.program_id(0), pieces, tl.num_programs(0)):
            address, size, code = _row(table_ptr, piece)
            if code == 0:
                _scale_piece(address, size, factor, tl.float32, ZERO, BLOCK_SIZE)
            elif code == 1:
                _scale_piece(address, size, factor, tl.bfloat16, ZERO, BLOCK_SIZE)
            else:
                _scale_piece(address, size, factor, tl.float16, ZERO, BLOCK_SIZE)


@triton.jit
def _clamp(pointer, index, in_bounds, limit):
    """Clamp a block in place. Write only if an element is out of range. nan stays nan."""
    values = tl.load(pointer + index, mask=in_bounds, other=0.0).to(tl.float32)
    outside = (tl.abs(values) > limit) & in_bounds
    if tl.max(outside.to(tl.int32), axis=0) > 0:
        values = tl.where(values > limit, limit, tl.where(values < -limit, -limit, values))
        tl.store(pointer + index, values.to(pointer.dtype.element_ty), mask=in_bounds)


@triton.jit
def _clamp_piece(address, size, limit, DTYPE: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Clamp the elements of a piece in place."""
    pointer = address.to(tl.pointer_type(DTYPE))
    aligned = tl.multiple_of(pointer, 16)
    whole = size // _REST * _REST
    for start in range(0, whole, BLOCK_SIZE):
        index = start + tl.arange(0, BLOCK_SIZE)
        _clamp(aligned, index, index < whole, limit)
    index = whole + tl.arange(0, _REST)
    _clamp(pointer, index, index < size, limit)


@triton.jit
def _clip_value_kernel(table_ptr, pieces, limit, BLOCK_SIZE: tl.constexpr):
    """Clamp all gradients between ``-limit`` and ``limit``."""
    for piece in range(tl.program_id(0), pieces, tl.num_programs(0)):
        address, size, code = _row(table_ptr, piece)
        if code == 0:
            _clamp_piece(address, size, limit, tl.float32, BLOCK_SIZE)
        elif code == 1:
            _clamp_piece(address, size, limit, tl.bfloat16, BLOCK_SIZE)
        else:
            _clamp_piece(address, size, limit, tl.float16, BLOCK_SIZE)
