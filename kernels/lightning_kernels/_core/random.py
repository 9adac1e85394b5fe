"""Random words for kernels: a place in the stream of torch's generator, and Philox from there."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_kernels._core.dispatch import is_traced
from lightning_kernels._core.triton import tl, triton

WORDS_PER_CALL = 4  # a Philox call makes four words of 32 bits
_MAX_SEED = 2**63 - 1


class Stream(NamedTuple):
    """A place in torch's Philox stream, for one operation of any size.

    Attributes:
        state: int64 tensor of (seed, offset) on the device, or ``None`` if the host knows both.
        seed: Key of the stream, 0 with ``state``.
        offset: Counter in words, a multiple of four, unique to this operation; 0 with ``state``.
    """

    state: Tensor | None
    seed: int
    offset: int


def reserve(x: Tensor) -> Stream:
    """Take the next place in the stream of the default generator of ``x``'s device.

    On a GPU in eager mode this reads and advances the generator on the host, without a launch or a
    synchronisation. The state is torch's, so ``torch.manual_seed``, ``fork_rng``, activation
    checkpointing and the seed of each rank work. During the capture of a CUDA graph and under a
    compiler the place is drawn on the device, so that each replay gets a new one.
    """
    if is_traced(x) or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return Stream(torch.randint(_MAX_SEED, (2,), device=x.device), 0, 0)
    if x.is_cuda:
        generator = torch.cuda.default_generators[x.device.index]
        offset = generator.get_offset()
        generator.set_offset(offset + WORDS_PER_CALL)
        return Stream(None, generator.initial_seed(), offset)
    return Stream(None, int(torch.randint(_MAX_SEED, ())), 0)  # the CPU's generator has no offset


@triton.jit
def _philox(state_ptr, seed, offset, group):
    """Return the four words of each group; ``group`` is a tensor of any shape.

    A call is counted by (offset / 4, group). Torch's kernels count the same way, a thread for each
    group, so the streams never overlap.
    """
    if state_ptr is not None:
        seed = tl.load(state_ptr)
        offset = tl.load(state_ptr + 1)
    group = group.to(tl.uint64)
    counter = offset.to(tl.uint64) // 4
    zero = (group * 0).to(tl.uint32)
    return tl.philox(
        seed.to(tl.uint64),
        zero + (counter & 0xFFFFFFFF).to(tl.uint32),
        zero + (counter >> 32).to(tl.uint32),
        (group & 0xFFFFFFFF).to(tl.uint32),
        (group >> 32).to(tl.uint32),
    )


@triton.jit
def words_of_groups(state_ptr, seed, offset, group):
    """Return elements ``4 * group`` to ``4 * group + 3`` of the stream.

    The last dimension is four times as long as that of ``group``: four neighbours share a Philox
    call.
    """
    a, b, c, d = _philox(state_ptr, seed, offset, group)
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def random_words(state_ptr, seed, offset, first_group, BLOCK_SIZE: tl.constexpr):
    """Return a block of uint32, which begins at element ``4 * first_group`` of the stream."""
    return words_of_groups(state_ptr, seed, offset, first_group + tl.arange(0, BLOCK_SIZE // 4))


@triton.jit
def random_word_at(state_ptr, seed, offset, index):
    """Return the elements of the stream at ``index``, with a Philox call for each."""
    a, b, c, d = _philox(state_ptr, seed, offset, index // 4)
    lane = index % 4
    return tl.where(lane < 2, tl.where(lane == 0, a, b), tl.where(lane == 2, c, d))


@triton.jit
def random_rows(
    state_ptr, seed, offset, first, COLUMNS: tl.constexpr, MULTIPLES_OF_4: tl.constexpr
):
    """Return rows of the stream, each from its element of ``first``: a column, or one number."""
    if MULTIPLES_OF_4:
        group = first // 4 + tl.arange(0, COLUMNS // 4)[None, :]
        word = words_of_groups(state_ptr, seed, offset, group)
    else:
        index = first + tl.arange(0, COLUMNS)[None, :]
        word = random_word_at(state_ptr, seed, offset, index)
    return word
