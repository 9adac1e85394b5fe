"""What single instructions compute: against libm, torch and values worked out by hand."""

import ctypes
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.ptx import floats, warp
from benchmarks.ptx.arithmetic import comparison, conversion, function_of
from benchmarks.ptx.registers import Array


def test_fma_rounds_once() -> None:
    libm = ctypes.CDLL("libm.so.6")
    libm.fmaf.restype = ctypes.c_float
    libm.fmaf.argtypes = [ctypes.c_float] * 3
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, (3, 20000), np.uint32)
    bits[2] = np.where(random.random(20000) < 0.5, bits[2], bits[0])  # addends that nearly cancel
    a, b, c = bits.view(np.float32)
    near = random.normal(size=(3, 20000)).astype(np.float32)
    for x, y, z in ((a, b, c), tuple(near), (near[0], near[1], -near[0] * near[1])):
        with np.errstate(all="ignore"):
            got = floats.fma_f32(x, y, z)
        expected = np.array(
            [libm.fmaf(*map(float, t)) for t in zip(x, y, z, strict=True)], np.float32
        )
        np.testing.assert_array_equal(got, expected)


def test_bf16_rounds_to_nearest_even() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 100000, np.uint32)
    x = bits.view(np.float32)
    x = x[~np.isnan(x)]
    expected = torch.from_numpy(x.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(floats.narrow_bf16(x), expected)


def _u32(*values: int) -> Array:
    return np.array(values, np.uint32)


def _s32(*values: int) -> Array:
    return np.array(values, np.int32)


def _f32(*values: float) -> Array:
    return np.array(values, np.float32)


def _u16(*values: int) -> Array:
    return np.array(values, np.uint16)


def _u64(low: float, high: float) -> Array:
    return _f32(low, high).view(np.uint64)


def _apply(opcode: str, *sources: Array) -> Any:
    function = function_of(opcode, floats.Approximation())
    assert function is not None
    with np.errstate(all="ignore"):
        return np.asarray(function(*map(np.asarray, sources))).tolist()


@pytest.mark.parametrize(
    ("opcode", "sources", "expected"),
    [
        ("mul.hi.u32", (_u32(2**31), _u32(6)), [3]),
        ("mul.wide.s32", (_s32(-3), _s32(5)), [-15]),
        ("div.s32", (_s32(-7, 7), _s32(2, -2)), [-3, -3]),
        ("rem.s32", (_s32(-7, 7), _s32(2, -2)), [-1, 1]),
        ("shl.b32", (_u32(1), _u32(32)), [0]),
        ("shr.s32", (_s32(-8), _u32(40)), [-1]),
        ("bfe.u32", (_u32(0xABCD), _u32(4), _u32(8)), [0xBC]),
        ("bfe.s32", (_s32(0xF0), _u32(4), _u32(4)), [-1]),
        ("prmt.b32", (_u32(0x33221100), _u32(0x77665544), _u32(0x5410)),
         [0x55441100]),
        ("min.relu.s32", (_s32(-4, 9), _s32(3, 3)), [0, 3]),
        ("max.f32", (_f32(np.nan), _f32(2)), [2.0]),
        ("add.bf16x2", (_u32(0x3F803F80), _u32(0x40003F80)), [0x40404000]),
        ("fma.rn.f32x2", (_u64(1.5, -2.0), _u64(2.0, 4.0), _u64(0.25, 1.0)),
         _u64(3.25, -7.0).tolist()),
        ("add.s16x2", (_u32(0x7FFF_FFFF), _u32(0x0001_0001)), [0x8000_0000]),
        ("sub.rn.f32.bf16", (_u16(0x4040), _f32(2.0**-20)), [3 - 2.0**-20]),
        ("fma.rn.f32.bf16", (_u16(0x4040), _u16(0x3F80), _f32(2.0**-20)), [3 + 2.0**-20]),
        ("popc.b32", (_u32(255),), [8]),
    ],
)  # fmt: skip
def test_arithmetic(opcode: str, sources: tuple[Array, ...], expected: list[float]) -> None:
    assert _apply(opcode, *sources) == expected


@pytest.mark.parametrize(
    ("opcode", "sources", "expected"),
    [
        ("rzi.s32.f32", (_f32(-2.7, 3e10, np.nan),), [-2, 2**31 - 1, 0]),
        ("rn.f32.s32", (_s32(2**24 + 1),), [float(2**24)]),
        ("u64.u32", (_u32(2**32 - 1),), [2**32 - 1]),
        ("s64.s32", (_s32(-1),), [-1]),
        ("rn.bf16x2.f32", (_f32(2.0), _f32(1.0)), [0x40003F80]),
        ("f32.bf16", (_u16(0x3F80),), [1.0]),
    ],
)
def test_conversions(opcode: str, sources: tuple[Array, ...], expected: list[float]) -> None:
    function = conversion(opcode.split("."))
    assert function is not None
    assert function(*sources).tolist() == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("lt", False), ("ltu", True), ("ne", False), ("neu", True), ("nan", True)],
)
def test_comparisons_with_nan(name: str, expected: bool) -> None:
    function = comparison([name, "f32"], "f32")
    assert function is not None
    assert function(_f32(np.nan), _f32(1)).tolist() == [expected]


def test_matrices_come_back_as_they_went() -> None:
    registers = np.random.default_rng(0).integers(0, 2**32, 64, np.uint32)
    for transposed in (False, True):
        rows = warp.rows(registers, transposed)
        np.testing.assert_array_equal(warp.fragments(rows, transposed), registers)


def test_approximations_err_by_what_they_may() -> None:
    x = np.linspace(1, 2, 1000)
    exact = np.exp2(x)
    off = floats.Approximation(1.0)("ex2", exact)
    error = np.abs(off - exact) / exact * 2**23
    assert 1 < error.min() <= error.max() < 3


@pytest.mark.parametrize("opcode", ["add.rz.f32", "add.cc.u32", "fma.rn.bf16.f32", "prmt.b32.f4e"])
def test_unknown_modifiers_are_not_ignored(opcode: str) -> None:
    assert function_of(opcode, floats.Approximation()) is None
