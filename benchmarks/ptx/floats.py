"""Floating-point arithmetic with a GPU's roundings, on arrays."""

from collections.abc import Callable

import numpy as np

from benchmarks.ptx.registers import Array

_F32_TINY = np.float32(2.0**-126)


def widen_bf16(bits: Array) -> Array:
    """Return bfloat16 numbers, given as uint16, as float32."""
    return (np.asarray(bits, np.uint32) << np.uint32(16)).view(np.float32)


def narrow_bf16(x: Array) -> Array:
    """Round float32 (or float64, once) to bfloat16, to nearest even, and return its bits."""
    x = np.asarray(x)
    if x.dtype == np.float64:
        x = round_to_odd(x)
    bits = x.astype(np.float32, copy=False).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded.astype(np.uint16))


def round_to_odd(x: Array) -> Array:
    """Round float64 to float32 so that rounding once more is as rounding once."""
    y = x.astype(np.float32)
    bits = y.view(np.int32)
    inexact = (y != x) & np.isfinite(x) & np.isfinite(y)
    away = inexact & (np.abs(y.astype(np.float64)) > np.abs(x))
    truncated = bits - away.astype(np.int32)
    return np.where(inexact, truncated | 1, bits).astype(np.int32).view(np.float32)


def flush(x: Array) -> Array:
    """Return float32 with subnormal numbers made zeros of their sign (``.ftz``)."""
    x = np.asarray(x, np.float32)
    return np.where(np.abs(x) < _F32_TINY, np.copysign(np.float32(0), x), x)


def fma_f32(a: Array, b: Array, c: Array) -> Array:
    """Return ``a * b + c`` of float32, rounded once."""
    product = a.astype(np.float64) * b.astype(np.float64)  # exact
    addend = c.astype(np.float64)
    total = np.asarray(product + addend)
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    fix = (error != 0) & np.isfinite(total) & (bits & 1 == 0)  # to odd, for there is more below
    step = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(fix, bits + step, bits).view(np.float64).astype(np.float32)


def fma_f64(a: Array, b: Array, c: Array) -> Array:
    """Return ``a * b + c`` of float64, within a hair of one rounding."""
    product = np.asarray(a * b)
    high_a, high_b = _high(a), _high(b)
    low_a, low_b = a - high_a, b - high_b
    low = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back) + low
    return np.where(np.isfinite(error), total + error, total)


def _high(x: Array) -> Array:
    scaled = x * 134217729.0
    return np.asarray(scaled - (scaled - x))


# What the approximate instructions approximate, and the error that the PTX manual allows, in units
# of the last place of the result (2**-23 of it).
APPROXIMATE: dict[str, tuple[Callable[[Array], Array], float]] = {
    "ex2": (np.exp2, 2.0),
    "lg2": (np.log2, 2.0),
    "rcp": (np.reciprocal, 1.0),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 1.1),
    "sqrt": (np.sqrt, 1.0),
    "tanh": (np.tanh, 2.0**12),
    "sin": (np.sin, 4.0),
    "cos": (np.cos, 4.0),
    "div": (lambda x: x, 2.0),
}


class Approximation:
    """How approximate instructions err.

    Args:
        ulps: ``None`` for results rounded from exact ones; else the share of the allowed error, 1
            for all of it, by which each result is off. Equal results are off alike.
        seed: Of the choice between up and down.
    """

    def __init__(self, ulps: float | None = None, seed: int = 0) -> None:
        self._share = ulps
        self._factor = np.uint64(0x9E3779B97F4A7C15 + 2 * seed)

    def __call__(self, name: str, exact: Array) -> Array:
        """Round the float64 ``exact`` to float32, as the instruction ``name`` may."""
        exact = np.asarray(exact)
        if self._share is not None:
            sign = np.where(exact.view(np.uint64) * self._factor >> np.uint64(63), 1.0, -1.0)
            exact = exact * (1 + sign * self._share * APPROXIMATE[name][1] * 2.0**-23)
        return exact.astype(np.float32)
