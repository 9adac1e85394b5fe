"""Registers of all threads of a CTA, as arrays. Operands are views of them."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.ptx.parser import Program, UnsupportedPtxError

Array = NDArray[Any]
WARP = 32

# NumPy's type for each type of PTX: integers for bf16, which NumPy doesn't have, and for bits.
DTYPES: dict[str, type[np.generic]] = {
    "pred": np.bool_,
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "f16": np.float16, "bf16": np.uint16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32,
    "f16x2": np.uint32, "bf16x2": np.uint32, "f32x2": np.uint64,
    "s16x2": np.uint32, "u16x2": np.uint32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "f64": np.float64,
}  # fmt: skip
_CLASSES = {"p": np.bool_, "rs": np.uint16, "r": np.uint32, "rd": np.uint64, "f": np.uint32,
            "fd": np.uint64, "h": np.uint16, "hh": np.uint32}  # fmt: skip


class Registers:
    """All registers of a CTA: for each an array with a value per thread.

    Registers begin as noise, so a result that depends on a register that was never written changes
    with the seed. The noise is the same in all threads, because some threads hold copies of the
    numbers of others, also of the undefined results of masked loads.

    Args:
        program: The kernel.
        symbols: Values of the names that stand as operands.
        seed: Seed of the noise.

    Attributes:
        threads: Number of threads.
        special: Arrays of the special registers.
    """

    def __init__(self, program: Program, symbols: dict[str, int], seed: int = 0) -> None:
        self.threads = program.threads
        self._symbols = symbols
        self._noise = np.random.default_rng(seed)
        self._arrays: dict[str, Array] = {}
        thread = np.arange(self.threads, dtype=np.uint32)
        zero = np.zeros(self.threads, np.uint32)
        self.special: dict[str, Array] = {
            "%tid.x": thread, "%tid.y": zero, "%tid.z": zero,
            "%ntid.x": zero + self.threads, "%ntid.y": zero + 1, "%ntid.z": zero + 1,
            "%laneid": thread % WARP, "%warpid": thread // WARP,
            **{f"%{name}.{axis}": zero.copy() for name in ("ctaid", "nctaid") for axis in "xyz"},
        }  # fmt: skip

    def scramble(self) -> None:
        """Fill all registers with noise, as a CTA finds them."""
        noise = self._noise.bytes(8 * len(self._arrays))
        for place, array in enumerate(self._arrays.values()):
            value = noise[8 * place : 8 * place + array.itemsize]
            if array.dtype == np.bool_:
                array.fill(value[0] & 1)
            else:
                array.fill(int.from_bytes(value, "little"))

    def register(self, name: str) -> Array:
        """Return the array of a register, with the type of its class."""
        if name in self.special:
            return self.special[name]
        if name not in self._arrays:
            match = re.fullmatch(r"%([a-z]+)\d+", name)
            if match is None or match[1] not in _CLASSES:
                raise UnsupportedPtxError(f"register {name}")
            self._arrays[name] = np.zeros(self.threads, _CLASSES[match[1]])
        return self._arrays[name]

    def read(self, operand: str, type_name: str) -> Array:
        """Return an operand in a type of PTX: a view of a register, or one number."""
        dtype = np.dtype(DTYPES[type_name])
        if operand.startswith("%"):
            return _part(self.register(operand), dtype)
        return _immediate(operand, dtype, self._symbols)

    def write(self, operand: str, type_name: str) -> Array:
        """Return the view of a register that an instruction of this type writes."""
        if operand == "_":
            return np.zeros(self.threads, DTYPES[type_name])
        return _part(self.register(operand), np.dtype(DTYPES[type_name]))


def _part(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return the low bytes of each element."""
    if array.dtype == np.bool_ and dtype != np.bool_:
        raise UnsupportedPtxError("a predicate as a number")
    if dtype.itemsize > array.itemsize:
        raise UnsupportedPtxError(f"{dtype} in a register of {array.itemsize} bytes")
    return array.view(dtype)[:: array.itemsize // dtype.itemsize]


def _immediate(text: str, dtype: np.dtype[Any], symbols: dict[str, int]) -> Array:
    if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", text):
        bits = np.asarray(int(match[1] or match[2], 16), "u4" if match[1] else "u8")
        return bits.view(dtype)
    if dtype.kind == "f" and re.fullmatch(r"-?\d+\.\d*", text):
        return np.asarray(float(text), dtype)
    name, _, offset = text.partition("+")
    number = symbols[name] + int(offset or 0) if name in symbols else int(text.rstrip("U"), 0)
    if dtype == np.bool_:
        return np.asarray(number != 0)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    return np.asarray(number % 2 ** (8 * dtype.itemsize), unsigned).view(dtype)
