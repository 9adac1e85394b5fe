"""What the threads of a warp do together: exchange registers, and matrices with shared memory."""

import functools

import numpy as np

from benchmarks.ptx.parser import UnsupportedPtxError
from benchmarks.ptx.registers import WARP, Array

NAMES = frozenset({"shfl", "redux", "vote", "match", "activemask", "elect", "ldmatrix", "stmatrix"})


def exchange(name: str, modifiers: list[str], value: Array, options: list[Array]) -> Array:
    """Return what each thread gets of ``value``, one of each thread.

    Args:
        name: Of the instruction.
        modifiers: Its own.
        value: Its first source.
        options: Its other sources.

    Raises:
        UnsupportedPtxError: If it is not known.
    """
    lanes = value.reshape(-1, WARP)
    if name == "shfl":
        return _shuffle(modifiers[1], value, options)
    if name == "redux":
        reduce = {
            "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
            "or": np.bitwise_or, "xor": np.bitwise_xor,
        }[modifiers[1]].reduce  # fmt: skip
        return np.repeat(np.asarray(reduce(lanes, axis=1, dtype=value.dtype)), WARP)
    if name == "vote":
        if modifiers[1] == "ballot":
            bits = (lanes.astype(np.uint32) << np.arange(WARP, dtype=np.uint32)).sum(1)
            return np.repeat(bits.astype(np.uint32), WARP)
        return np.repeat(lanes.all(1) if modifiers[1] == "all" else lanes.any(1), WARP)
    raise UnsupportedPtxError(name)


def _shuffle(mode: str, value: Array, options: list[Array]) -> Array:
    other, clamp = options[:2]
    if other.ndim == clamp.ndim == 0:
        return np.asarray(value[_fixed_source(mode, len(value), int(other), int(clamp))])
    both = (np.broadcast_to(o, value.shape).astype(np.int64) for o in (other, clamp))
    return np.asarray(value[_source(mode, len(value), *both)])


@functools.cache
def _fixed_source(mode: str, threads: int, other: int, clamp: int) -> Array:
    return _source(mode, threads, np.full(threads, other), np.full(threads, clamp))


def _source(mode: str, threads: int, other: Array, clamp: Array) -> Array:
    """Return the thread that each thread gets the value of, as the PTX manual has it."""
    thread = np.arange(threads)
    lane = thread % WARP
    segment, clamp, other = clamp >> 8 & 31, clamp & 31, other & 31
    low = lane & segment
    high = low | clamp & ~segment
    if mode == "up":
        source = lane - other
        inside = source >= high
    else:
        source = {
            "down": lane + other, "bfly": lane ^ other, "idx": low | other & ~segment,
        }[mode]  # fmt: skip
        inside = source <= high
    return np.where(inside, thread - lane + source, thread)


def fragments(matrix: Array, transposed: bool) -> Array:
    """Return the 32 bits of each thread of 8 by 8 matrices of 16 bits.

    Args:
        matrix: Bytes of their rows, 8 of each warp, ``(8 * warps, 16)``.
        transposed: Whether threads hold columns.
    """
    squares = np.ascontiguousarray(matrix).view(np.uint16).reshape(-1, 8, 8)
    if transposed:
        squares = squares.transpose(0, 2, 1)
    return np.ascontiguousarray(squares).view(np.uint32).ravel()


def rows(registers: Array, transposed: bool) -> Array:
    """Return the bytes of rows that :func:`fragments` makes these registers of."""
    squares = np.ascontiguousarray(registers).view(np.uint16).reshape(-1, 8, 8)
    if transposed:
        squares = np.ascontiguousarray(squares.transpose(0, 2, 1))
    return np.ascontiguousarray(squares).view(np.uint8).reshape(-1, 16)
