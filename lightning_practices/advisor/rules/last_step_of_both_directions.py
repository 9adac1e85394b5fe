"""A bidirectional network whose backward direction is read after its first token."""

from collections.abc import Iterator

from torch import nn

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._time_steps import is_last_step

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
        if all(is_last_step(user, time) for user in users):
            yield Evidence(
                f"only the last of {output.shape[time]} time steps of {call} is used, by"
                f" {users[0]}: there the backward direction has read one element",
                "torch.cat([h[-2], h[-1]], dim=-1) with h the hidden state, or a mean over time",
                (call.module,),
                {"steps": output.shape[time]},
            )
