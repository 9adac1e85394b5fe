"""The instructions of whole warps: shuffles, votes, and matrices in shared memory."""

import functools

import numpy as np

from benchmarks.ptx.parser import UnsupportedPtxError
from benchmarks.ptx.registers import WARP, Array

NAMES = frozenset({"shfl", "redux", "ldmatrix", "stmatrix"})


def exchange(name: str, modifiers: list[str], value: Array, options: list[Array]) -> Array:
    """Return the result of each thread.

    Args:
        name: Name of the instruction.
        modifiers: Its modifiers.
        value: Its first source.
        options: Its other sources.

    Raises:
        UnsupportedPtxError: If the instruction is not known.
    """
    lanes = value.reshape(-1, WARP)
    if name == "shfl":
        return _shuffle(modifiers[1], value, options)
    if name == "redux":
        reduce = {"add": np.add, "min": np.minimum, "max": np.maximum}[modifiers[1]].reduce
        return np.repeat(np.asarray(reduce(lanes, axis=1, dtype=value.dtype)), WARP)
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
    """Return the thread from which each thread gets a value, by the rule of the PTX manual."""
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
    """Return the two 16-bit elements of an 8 by 8 matrix that each thread of a warp holds.

    Args:
        matrix: Bytes of the rows, one matrix per warp: ``(8 * warps, 16)``.
        transposed: Whether the threads hold columns.
    """
    squares = np.ascontiguousarray(matrix).view(np.uint16).reshape(-1, 8, 8)
    if transposed:
        squares = squares.transpose(0, 2, 1)
    return np.ascontiguousarray(squares).view(np.uint32).ravel()


def rows(registers: Array, transposed: bool) -> Array:
    """Return the bytes of the rows, the inverse of :func:`fragments`."""
    squares = np.ascontiguousarray(registers).view(np.uint16).reshape(-1, 8, 8)
    if transposed:
        squares = np.ascontiguousarray(squares.transpose(0, 2, 1))
    return np.ascontiguousarray(squares).view(np.uint8).reshape(-1, 16)
