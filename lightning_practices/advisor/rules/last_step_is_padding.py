"""Sequences whose summary is read after their padding."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._time_steps import (
    are_lengths_of_padding,
    is_last_step,
    padding_at_the_end,
)
from lightning_practices.advisor._trace import Call, Value

_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_ATTENTION = frozenset({"multi_head_attention_forward", "scaled_dot_product_attention"})


@rule(
    "LP273", "warning",
    practice="The summary of a sequence is read at its own last step",
    measures="the share of sequences that end by a token for padding, where the last time step of"
    " all is the only output of a recurrent network or of attention that is used",
    healthy="packed sequences, padding at the start, the step at each length, or a masked mean",
    source="torch.nn.utils.rnn.pack_padded_sequence; questions on forums about an LSTM on padded"
    " reviews that stays at chance",
)  # fmt: skip
def last_step_is_padding(seen: Observation) -> Iterator[Evidence]:
    yield from _read_after_padding(seen, is_known=True)


@rule(
    "LP275", "hint",
    practice="The summary of a sequence is read at its own last step",
    measures="as LP273, where vectors of zeros, or a token other than 0 that the embedding doesn't"
    " name as padding, end the sequences",
    healthy="as for LP273; series whose ends are silent, as of notes, spikes or rain",
    source="torch.nn.utils.rnn.pack_padded_sequence",
)  # fmt: skip
def last_step_may_be_padding(seen: Observation) -> Iterator[Evidence]:
    yield from _read_after_padding(seen, is_known=False)


def _read_after_padding(seen: Observation, is_known: bool) -> Iterator[Evidence]:
    for padded in _padded(seen.step):
        summary = _summary(seen, padded) if padded.is_known == is_known else None
        if summary is not None:
            call, use = summary
            what = "padding" if is_known else "the same steps"
            end = "" if is_known else ", if these steps are padding"
            yield Evidence(
                f"{padded.share:.0%} of the sequences in {padded.value.source or 'a batch'} end"
                f" by {what}, {padded.mean:.0f} of {padded.steps} steps on average, and {use} is"
                f" all that is used of {call}: it has read the padding after the sequence{end}",
                "pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False) and the"
                " hidden state, h[torch.arange(len(h)), lengths - 1], or padding at the start",
                tuple(name for name in [call.module or layer_of(call.output)] if name),
                {"padded": padded.share, "steps": padded.mean},
            )
            return


class _Padded(NamedTuple):
    """Sequences that a first layer reads.

    Attributes:
        call: The layer.
        value: Its input.
        steps: Their length, with the padding.
        time: The dimension of the time steps.
        share: The share of sequences with padding at their end.
        mean: The mean number of padded steps.
        is_known: Whether they are padding by the embedding, or have the token 0.
    """

    call: Call
    value: Value
    steps: int
    time: int
    share: float
    mean: float
    is_known: bool


def _padded(step: Step) -> Iterator[_Padded]:
    for call, value in step.first_layers:
        x = value.tensor
        if x is None or x.dim() not in (2, 3) or not x.numel():
            continue
        for time, sequences in ((1, x), (0, x.transpose(0, 1))):
            lengths = padding_at_the_end(sequences)
            if lengths is not None and are_lengths_of_padding(lengths, sequences.shape[1]):
                share, mean = float((lengths > 0).float().mean()), float(lengths.float().mean())
                is_known = _is_known(call, sequences)
                yield _Padded(call, value.origin(), sequences.shape[1], time, share, mean, is_known)
                break


def _is_known(call: Call, sequences: Tensor) -> bool:
    """Return whether what ends sequences is a token for padding, and no data."""
    if sequences.is_floating_point():
        return False
    declared = call.get(2, "padding_idx") if call.name == "embedding" else None
    token = int(sequences[:, -1].mode().values)
    return token in (0, declared)


def _summary(seen: Observation, padded: _Padded) -> tuple[Call, str] | None:
    """Return what reads the sequences to their last step, and how its last output is used."""
    step = seen.step
    for call in step.calls:
        if not call.outputs or not call.output.requires_grad or len(call.output.shape) != 3:
            continue
        if not _follows(call, padded.call) or call.output.shape[padded.time] != padded.steps:
            continue
        users = step.users(call.output)
        part = seen.modules.get(call.module)
        if call.name in _RECURRENT and not (isinstance(part, nn.RNNBase) and part.bidirectional):
            states = [user for state in call.outputs[1:2] for user in step.users(state)]
            if not users and states:
                return call, "the last hidden state"
        if users and all(is_last_step(user, padded.time) for user in users) and _reads(call):
            return call, f"the last time step ({users[0].line})"
    return None


def _follows(call: Call, first: Call) -> bool:
    return call is first or any(one is first for one in call.output.before())


def _reads(call: Call) -> bool:
    """Return whether a call's result holds what a network has read of other time steps."""
    found = [call, *call.output.before()]
    return any(one.name in _RECURRENT | _ATTENTION for one in found)
