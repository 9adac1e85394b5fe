"""A bidirectional network whose backward direction is read after its first token."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Value

_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_FEWEST = 3  # time steps


@rule(
    "LP262", "warning",
    practice="The summary of a bidirectional network has the end of both directions",
    measures="outputs of bidirectional recurrent networks of which the last time step alone is used"
    " for both directions",
    healthy="the hidden states, a mean over time, or each direction at its own end",
    source="torch.nn.LSTM: h_n[-1] of the reverse direction is the output at the first time step",
)  # fmt: skip
def last_step_of_both_directions(seen: Observation) -> Iterator[Evidence]:
    for call in seen.step.calls:
        part = seen.modules.get(call.module)
        if (
            not isinstance(part, nn.RNNBase)
            or not part.bidirectional
            or call.name not in _RECURRENT
        ):
            continue
        output = call.output
        if len(output.shape) != 3:  # packed, or without samples
            continue
        time = 1 if part.batch_first else 0
        users = seen.step.users(output)
        is_read = any(seen.step.users(state) for state in call.outputs[1:])
        if output.shape[time] < _FEWEST or is_read or not users:
            continue
        if all(_is_last(user, time) for user in users):
            yield Evidence(
                f"only the last of {output.shape[time]} time steps of {call} is used, by"
                f" {users[0]}: there the backward direction has read one element",
                "torch.cat([h[-2], h[-1]], dim=-1) with h the hidden state, or a mean over time",
                (call.module,),
                {"steps": output.shape[time]},
            )


def _is_last(user: Call, time: int) -> bool:
    """Return whether a call takes all features of the last time step."""
    if user.name == "select":
        place, index = user.get(1, "dim"), user.get(2, "index")
        return place in (time, time - 3) and index in (-1, user.inputs[0].shape[time] - 1)
    index = user.get(1, "idx") if user.name == "__getitem__" else None
    parts: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
    parts = tuple(part for part in parts if part is not Ellipsis)
    if len(parts) <= time or isinstance(parts[time], Value | bool):
        return False
    rest = [part for place, part in enumerate(parts) if place != time]
    is_end = parts[time] in (-1, user.inputs[0].shape[time] - 1)
    return is_end and isinstance(parts[time], int) and all(part == slice(None) for part in rest)
