"""The instructions that compute in one thread alone, as functions of arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.ptx import floats
from benchmarks.ptx.registers import DTYPES, Array

Function = Callable[..., Array]
# Types of two numbers in one register, and NumPy's types of the number and the register.
_PACKED: dict[str, tuple[type[np.generic], type[np.generic]]] = {
    "f16x2": (np.float16, np.uint32),
    "bf16x2": (np.uint16, np.uint32),
    "f32x2": (np.float32, np.uint64),
    "s16x2": (np.int16, np.uint32),
    "u16x2": (np.uint16, np.uint32),
}
_FLOAT_MODIFIERS = frozenset({"rn", "approx", "full", "ftz", "NaN"})
_INTEGER_MODIFIERS = frozenset({"lo", "hi", "wide", "relu", "l", "wrap"})
_FLOATS = frozenset({"f16", "bf16", "f32", "f64"})

_PLAIN: dict[str, Function] = {
    "add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "neg": np.negative, "abs": np.abs,
}  # fmt: skip
_COMPARISONS: dict[str, Function] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater,
    "hs": np.greater_equal,
}  # fmt: skip


def is_float(type_name: str) -> bool:
    """Return whether numbers of this type are floating-point."""
    return type_name in _FLOATS


def is_mixed(name: str, modifiers: list[str]) -> bool:
    """Return whether an instruction has float32 numbers, but for its first sources.

    Such as ``add.rn.f32.bf16 d, a, c`` and ``fma.rn.f32.bf16 d, a, b, c``: only ``d`` and ``c`` are
    float32.
    """
    return name in {"add", "sub", "fma"} and modifiers[-2:] in (["f32", "f16"], ["f32", "bf16"])


def function_of(opcode: str, approximation: floats.Approximation) -> Function | None:
    """Return the function of an instruction, or ``None`` if it is not known."""
    name, *modifiers = opcode.split(".")
    type_name = modifiers.pop() if modifiers else ""
    if type_name in _PACKED:
        single = function_of(opcode.removesuffix("x2"), approximation)
        return single and _packed(single, *_PACKED[type_name])
    if is_mixed(name, [*modifiers, type_name]):
        return _mixed(_float_function(name, modifiers[:-1], "f32", approximation), type_name)
    if is_float(type_name):
        return _float_function(name, modifiers, type_name, approximation)
    return _integer_function(name, modifiers, type_name)


def _float_function(
    name: str, modifiers: list[str], type_name: str, approximation: floats.Approximation
) -> Function | None:
    if not _FLOAT_MODIFIERS.issuperset(modifiers):
        return None
    function = _float_core(name, modifiers, type_name, approximation)
    if function is None:
        return None
    if "ftz" in modifiers:
        function = _flushing(function)
    return _in_bf16(function) if type_name == "bf16" else function


def _mixed(function: Function | None, type_name: str) -> Function | None:
    """Return ``function`` of float32 for sources of which only the last is float32."""
    if function is None:
        return None
    widen = floats.widen_bf16 if type_name == "bf16" else _widen_f16
    return lambda *sources: function(*map(widen, sources[:-1]), sources[-1])


def _widen_f16(x: Array) -> Array:
    return x.astype(np.float32)


def _float_core(
    name: str, modifiers: list[str], type_name: str, approximation: floats.Approximation
) -> Function | None:
    if name in {"fma", "mad"}:
        return {"f32": floats.fma_f32, "bf16": _fma_bf16, "f16": _fma_f16}.get(
            type_name, floats.fma_f64
        )
    if name in {"min", "max"}:
        return {
            ("min", False): np.fmin, ("max", False): np.fmax,
            ("min", True): np.minimum, ("max", True): np.maximum,
        }[name, "NaN" in modifiers]  # fmt: skip
    if name == "copysign":
        return lambda sign, x: np.copysign(x, sign)
    if name == "mul":
        return np.multiply
    if name in {"div", "rcp", "sqrt"} and ("rn" in modifiers or type_name == "f64"):
        return {"div": np.divide, "rcp": np.reciprocal, "sqrt": np.sqrt}[name]
    if name in floats.APPROXIMATE and type_name == "f32":
        return _approximate(name, approximation)
    return _PLAIN[name] if name in {"add", "sub", "neg", "abs"} else None


def _approximate(name: str, approximation: floats.Approximation) -> Function:
    if name == "div":
        return lambda a, b: approximation("div", a.astype(np.float64) / b)
    exact = floats.APPROXIMATE[name][0]
    return lambda x: approximation(name, exact(x.astype(np.float64)))


def _flushing(function: Function) -> Function:
    return lambda *sources: floats.flush(function(*map(floats.flush, sources)))


def _in_bf16(function: Function) -> Function:
    return lambda *sources: floats.narrow_bf16(function(*map(floats.widen_bf16, sources)))


def _fma_bf16(a: Array, b: Array, c: Array) -> Array:
    return floats.fma_f64(*(x.astype(np.float64) for x in (a, b, c)))


def _fma_f16(a: Array, b: Array, c: Array) -> Array:
    return floats.fma_f64(*(x.astype(np.float64) for x in (a, b, c))).astype(np.float16)


def _packed(function: Function, number: type[np.generic], register: type[np.generic]) -> Function:
    """Return ``function`` for registers that hold two numbers each."""

    def both(*sources: Array) -> Array:
        numbers = [np.ascontiguousarray(np.atleast_1d(s)).view(number) for s in sources]
        return np.ascontiguousarray(function(*numbers)).view(register)

    return both


def _integer_function(name: str, modifiers: list[str], type_name: str) -> Function | None:
    if not _INTEGER_MODIFIERS.issuperset(modifiers):
        return None
    if name in _PLAIN:
        return _PLAIN[name]
    if name == "not":
        return np.logical_not if type_name == "pred" else np.invert
    if name in {"min", "max"}:
        function = np.minimum if name == "min" else np.maximum
        return _relu(function) if "relu" in modifiers else function
    if name in {"mul", "mad"}:
        part = next((m for m in modifiers if m in {"lo", "hi", "wide"}), "lo")
        products: dict[str, Function] = {
            "lo": np.multiply, "hi": _high_product, "wide": _wide_product,
        }  # fmt: skip
        product = products[part]
        return product if name == "mul" else lambda a, b, c: product(a, b) + c
    if name in {"shl", "shr"}:
        shift = np.left_shift if name == "shl" else np.right_shift
        return lambda a, amount: shift(a, np.minimum(amount, 64).astype(a.dtype))
    if name == "shf":
        return _rotate_left if modifiers == ["l", "wrap"] else None
    return _INTEGER.get(name)


def _relu(function: Function) -> Function:
    return lambda a, b: np.maximum(function(a, b), 0).astype(a.dtype)


def _wide_product(a: Array, b: Array) -> Array:
    wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
    return np.asarray(a.astype(wide) * b.astype(wide))


def _high_product(a: Array, b: Array) -> Array:
    if a.dtype.itemsize < 8:
        return np.asarray(_wide_product(a, b) >> (8 * a.dtype.itemsize), a.dtype)
    exact = np.asarray(a, object) * np.asarray(b, object)
    return np.asarray(exact >> 64).astype(a.dtype)


def quotient(a: Array, b: Array) -> Array:
    """Divide integers, rounded towards zero. The quotient by zero has all bits set, as on GPUs."""
    if a.dtype.kind == "u":
        return np.where(b == 0, ~np.zeros((), a.dtype), a // np.where(b == 0, b + 1, b))
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    size = quotient(np.abs(a).astype(unsigned), np.abs(b).astype(unsigned)).astype(a.dtype)
    return np.where(((a < 0) != (b < 0)) & (b != 0), -size, size)


def remainder(a: Array, b: Array) -> Array:
    """Return the remainder of :func:`quotient`, which has the sign of ``a``."""
    return np.asarray(a - quotient(a, b) * b)


def _popc(a: Array) -> Array:
    return np.asarray(np.bitwise_count(a), np.uint32)


def _bfe(a: Array, position: Array, length: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    start, size = (np.minimum(x & 0xFF, bits).astype(np.int64) for x in (position, length))
    if a.dtype.kind == "u":
        field = np.right_shift(a, start.astype(a.dtype))
        mask = np.left_shift(np.ones((), a.dtype), size.astype(a.dtype)) - a.dtype.type(1)
        return np.asarray(np.where(size >= bits, field, field & mask))
    room = np.maximum(bits - start - size, 0)
    up = np.left_shift(a, room.astype(a.dtype))
    field = np.right_shift(up, (start + room).astype(a.dtype))
    return np.asarray(np.where(size == 0, a.dtype.type(0), field))


def _prmt(a: Array, b: Array, selector: Array) -> Array:
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros(np.broadcast(a, b, selector).shape, np.uint32)
    for place in range(4):
        nibble = (selector >> np.uint32(4 * place)) & np.uint32(15)
        byte = (both >> ((nibble & 7).astype(np.uint64) * np.uint64(8))).astype(np.uint32) & 255
        sign = np.where(byte & 128 != 0, np.uint32(255), np.uint32(0))
        chosen = np.where(nibble & 8 != 0, sign, byte).astype(np.uint32)
        result |= chosen << np.uint32(8 * place)
    return result


def _rotate_left(low: Array, high: Array, amount: Array) -> Array:
    """Return the upper half of two registers, shifted to the left (``shf.l.wrap``)."""
    both = high.astype(np.uint64) << np.uint64(32) | low
    return (both << (amount & 31).astype(np.uint64) >> np.uint64(32)).astype(np.uint32)


_INTEGER: dict[str, Function] = {
    "div": quotient, "rem": remainder, "popc": _popc, "bfe": _bfe, "prmt": _prmt,
}  # fmt: skip


def comparison(modifiers: list[str], type_name: str) -> Function | None:
    """Return the function of a ``setp``, or ``None`` if it is not known."""
    name = modifiers[0]
    widen = floats.widen_bf16 if type_name == "bf16" else np.asarray
    if name in {"nan", "num"}:
        nan: Function = lambda a, b: np.isnan(widen(a)) | np.isnan(widen(b))  # noqa: E731
        return nan if name == "nan" else lambda a, b: ~nan(a, b)
    unordered = is_float(type_name) and name.endswith("u")
    ordered = _COMPARISONS.get(name[:-1] if unordered else name)
    if ordered is None:
        return None

    def compare(a: Array, b: Array) -> Array:
        a, b = widen(a), widen(b)
        result = ordered(a, b)
        if name == "ne" and is_float(type_name):  # ordered, where NumPy's is not
            return np.asarray(result & ~(np.isnan(a) | np.isnan(b)))
        return np.asarray(result | np.isnan(a) | np.isnan(b)) if unordered else result

    return compare


_ROUND_TO_INTEGER: dict[str, Function] = {
    "div": quotient, "rem": remainder, "popc": _popc, "bfe": _bfe, "prmt": _prmt,
}  # fmt: skip


def conversion(modifiers: list[str]) -> Function | None:
    """Return the function of a ``cvt``, whose last two modifiers are its types, or ``None``."""
    target, source = modifiers[-2:]
    if target.endswith("x2"):
        narrow = floats.narrow_bf16 if target == "bf16x2" else _half_bits
        if source != "f32":
            return None
        return lambda high, low: narrow(high).astype(np.uint32) << np.uint32(16) | narrow(low)
    if not is_float(target):
        return _to_integer(modifiers, target, source)

    def convert(x: Array) -> Array:
        x = floats.widen_bf16(x) if source == "bf16" else x
        if "ftz" in modifiers and x.dtype == np.float32:
            x = floats.flush(x)
        return floats.narrow_bf16(x) if target == "bf16" else x.astype(DTYPES[target])

    return convert if {"rn", "ftz", target, source}.issuperset(modifiers) else None


def _half_bits(x: Array) -> Array:
    return np.asarray(x, np.float16).view(np.uint16)


def _to_integer(modifiers: list[str], target: str, source: str) -> Function | None:
    dtype: np.dtype[Any] = np.dtype(DTYPES[target])
    if not is_float(source):
        return (lambda x: x.astype(dtype)) if modifiers == [target, source] else None
    if modifiers != ["rzi", target, source]:
        return None

    def convert(x: Array) -> Array:
        wide = np.trunc(np.asarray(floats.widen_bf16(x) if source == "bf16" else x, np.float64))
        limits = np.iinfo(dtype)
        inside = np.clip(np.where(np.isnan(wide), 0, wide), limits.min, limits.max)
        top = wide >= float(limits.max)  # float64 can't tell the largest 64-bit integers apart
        return np.where(top, limits.max, np.where(top, 0, inside).astype(dtype)).astype(dtype)

    return convert
