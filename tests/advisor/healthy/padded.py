"""Padded sequences whose summary is read where they end."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from tests.advisor.faulty.padded import STEPS, Attentive, Reader, Series, reads, sentences
from tests.advisor.programs import Arguments, Task, healthy, split


@healthy
def packed_sequences() -> Arguments:
    def summary(net: Any, x: Tensor, tokens: Tensor) -> Tensor:
        lengths = (tokens > 0).sum(dim=1).cpu()
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        state: Tensor = net.rnn(packed)[1][-1]
        return state

    return reads(Reader(summary))


@healthy
def output_at_each_length() -> Arguments:
    def summary(net: Any, x: Tensor, tokens: Tensor) -> Tensor:
        out: Tensor = net.rnn(x)[0]
        return out[torch.arange(len(out)), (tokens > 0).sum(dim=1) - 1]

    return reads(Reader(summary))


@healthy
def padding_at_the_start() -> Arguments:
    tokens, y = sentences()
    return Task(Reader(lambda net, x, tokens: net.rnn(x)[0][:, -1])), split(tokens.flip(1), y)


@healthy
def sequences_flipped_before_they_are_read() -> Arguments:
    class Flipped(Reader):
        def forward(self, tokens: Tensor) -> Any:
            return super().forward(tokens.flip(1))

    return reads(Flipped(lambda net, x, tokens: net.rnn(x)[0][:, -1]))


@healthy
def few_padded_sequences() -> Arguments:
    tokens, y = sentences()
    full = torch.where(tokens == 0, 1 + 10 * y[:, None], tokens)
    full[::8] = tokens[::8]
    return Task(Reader(lambda net, x, tokens: net.rnn(x)[0][:, -1])), split(full, y)


@healthy
def first_position_of_attention() -> Arguments:
    return reads(Attentive(lambda net, x, tokens: net.attend(x, tokens)[:, 0]))


@healthy
def masked_mean_of_outputs() -> Arguments:
    def summary(net: Any, x: Tensor, tokens: Tensor) -> Tensor:
        out: Tensor = net.rnn(x)[0]
        mask = (tokens > 0).float()[:, :, None]
        return (out * mask).sum(dim=1) / mask.sum(dim=1).clamp(max=STEPS)

    return reads(Reader(summary))


@healthy
def few_padded_series() -> Arguments:
    tokens, y = sentences()
    full = torch.where(tokens == 0, 1 + 10 * y[:, None], tokens)
    full[::8] = tokens[::8]
    series = torch.stack([full / 10.0, (full > 9).float(), (full > 0).float()], dim=2)
    return Task(nn.Sequential(Series(), nn.Linear(24, 2))), split(series, y)


@healthy
def piano_rolls_whose_ends_are_silent() -> Arguments:
    """Three notes; silence of different lengths ends most pieces, and tells of the class."""
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(2, (640,), generator=draw)
    ends = torch.randint(4, STEPS // 2, (640,), generator=draw) + y * STEPS // 2
    notes = torch.nn.functional.one_hot(torch.randint(3, (640, STEPS), generator=draw), 3)
    rolls = notes.float() * (torch.arange(STEPS) < ends[:, None])[:, :, None]
    return Task(nn.Sequential(Series(), nn.Linear(24, 2))), split(rolls, y)


@healthy
def states_that_are_never_left() -> Arguments:
    """The last state of customers who leave is a state like others, and has no padding_idx."""
    tokens, y = sentences()
    states = torch.where(tokens == 0, 29, tokens.clamp(max=28))
    read = Reader(lambda net, x, tokens: net.rnn(x)[0][:, -1], padding=None)
    return Task(read), split(states, y)
