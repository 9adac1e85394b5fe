"""Random words for kernels, drawn by Philox from the stream of torch's generator."""

import threading
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_kernels._core.dispatch import is_traced
from lightning_kernels._core.triton import tl, triton

WORDS_PER_CALL = 4  # a Philox call returns four words of 32 bits
_MAX_SEED, _BITS = 2**63 - 1, 2**64 - 1
# The constants of Philox4x32-10 (Salmon et al., 2011).
_LEFT, _RIGHT = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)
_FIRST_STEP, _SECOND_STEP = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)

# It advances the generator in one step. `set_offset` makes torch prepare the dropout of cuDNN's
# recurrent networks anew at their next call, with a synchronisation.
_HAS_PHILOX_STATE = hasattr(torch.Generator, "philox_state")
_lock = threading.Lock()  # two threads must not get the same position


class Stream(NamedTuple):
    """A position in torch's Philox stream, from which one operation draws any number of words.

    Attributes:
        state: int64 tensor (seed, offset) on the device, or ``None`` if the host knows both
            numbers.
        seed: Key of the stream, or 0 if ``state`` is given.
        offset: Counter in words, or 0 if ``state`` is given. It is a multiple of four, and unique
            to this operation.
    """

    state: Tensor | None
    seed: int
    offset: int


def reserve(x: Tensor) -> Stream:
    """Take the next position in the stream of the default generator of the device of ``x``.

    On a GPU in eager mode the host reads and advances the generator, without a launch or a
    synchronisation. The state is that of torch's generator, so ``torch.manual_seed``, ``fork_rng``,
    activation checkpointing and a separate seed for each rank work. A CUDA graph reads seed and
    offset from the device, so that each replay gets new numbers: since torch 2.14 those that the
    generator reserves for the graph, and before that numbers that the graph draws, as under a
    compiler.
    """
    if is_traced(x):
        return _drawn(x)
    if x.is_cuda:
        generator = torch.cuda.default_generators[x.device.index]
        capturing = torch.cuda.is_current_stream_capturing()
        if _HAS_PHILOX_STATE:
            seed, offset, within_graph = generator.philox_state(WORDS_PER_CALL)
            if capturing:
                return Stream(torch.cat((seed, offset + within_graph.item())), 0, 0)
            # The tensors hold the bits of unsigned numbers.
            return Stream(None, int(seed.item()) & _BITS, int(offset.item()) & _BITS)
        if capturing:
            return _drawn(x)
        with _lock:
            position = generator.get_offset()
            generator.set_offset(position + WORDS_PER_CALL)
        return Stream(None, generator.initial_seed(), position)
    return Stream(None, int(torch.randint(_MAX_SEED, ())), 0)  # the CPU's generator has no offset


def _drawn(x: Tensor) -> Stream:
    """Return a position that the device draws, when this operation runs."""
    return Stream(torch.randint(_MAX_SEED, (2,), device=x.device), 0, 0)


@triton.jit
def _philox(state_ptr, seed, offset, group):
    """Return the four words of each group. ``group`` is a tensor of any shape.

    The Philox counter is (offset / 4, group). Torch's kernels use the same counter, with the number
    of the thread as group, so the words of different operations never overlap.
    """
    if state_ptr is not None:
        seed = tl.load(state_ptr)
        offset = tl.load(state_ptr + 1)
    group = group.to(tl.uint64)
    counter = offset.to(tl.uint64) // 4
    seed = seed.to(tl.uint64)
    a, b = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    c, d = group.to(tl.uint32), (group >> 32).to(tl.uint32)
    first_key, second_key = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        # One multiplication to 64 bits gives the high and the low word. tl.philox multiplies twice.
        left = a.to(tl.uint64) * _LEFT
        right = c.to(tl.uint64) * _RIGHT
        a = (right >> 32).to(tl.uint32) ^ b ^ first_key
        b = right.to(tl.uint32)
        c = (left >> 32).to(tl.uint32) ^ d ^ second_key
        d = left.to(tl.uint32)
        first_key += _FIRST_STEP
        second_key += _SECOND_STEP
    return a, b, c, d


@triton.jit
def words_of_groups(state_ptr, seed, offset, group):
    """Return words ``4 * group`` to ``4 * group + 3`` of the stream.

    The last dimension of the result is four times as long as that of ``group``. Four neighbours
    come from one Philox call.
    """
    a, b, c, d = _philox(state_ptr, seed, offset, group)
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def random_words(state_ptr, seed, offset, first_group, BLOCK_SIZE: tl.constexpr):
    """Return ``BLOCK_SIZE`` words (uint32) of the stream, from word ``4 * first_group`` on."""
    return words_of_groups(state_ptr, seed, offset, first_group + tl.arange(0, BLOCK_SIZE // 4))


@triton.jit
def random_word_at(state_ptr, seed, offset, index):
    """Return the words of the stream at ``index``, a tensor, with one Philox call per word."""
    a, b, c, d = _philox(state_ptr, seed, offset, index // 4)
    lane = index % 4
    return tl.where(lane < 2, tl.where(lane == 0, a, b), tl.where(lane == 2, c, d))


@triton.jit
def random_rows(
    state_ptr, seed, offset, first, COLUMNS: tl.constexpr, MULTIPLES_OF_4: tl.constexpr
):
    """Return a tile of words. A row holds ``COLUMNS`` words, from word ``first`` of the stream on.

    ``first`` is a column with a number for each row, or one number. If each number is a multiple of
    4 (``MULTIPLES_OF_4``), four words come from one Philox call.
    """
    if MULTIPLES_OF_4:
        group = first // 4 + tl.arange(0, COLUMNS // 4)[None, :]
        word = words_of_groups(state_ptr, seed, offset, group)
    else:
        index = first + tl.arange(0, COLUMNS)[None, :]
        word = random_word_at(state_ptr, seed, offset, index)
    return word
