"""A recurrent state that goes from one batch of shuffled samples to the next."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import batch_size
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Value

_RECURRENT = frozenset(
    name + cell for name in ("lstm", "gru", "rnn_tanh", "rnn_relu") for cell in ("", "_cell")
)
_JOINS = frozenset({"cat", "concat", "concatenate", "hstack"})
_SUMS = frozenset({"add", "lerp"})


@rule(
    "LP151", "warning",
    practice="A recurrent state begins anew with each batch of shuffled sequences",
    measures="what layers make in a step, an attribute of the module keeps, and the next step joins"
    " with its own samples, row by row, as a recurrent layer does; and the order of the loader",
    healthy="a fresh state, or a loader in order, as for streams; averages, queues and banks of"
    " features, which aren't joined by rows, may stay",
    source="the notes on stateful recurrent networks of Keras: samples of a batch follow those of"
    " the batch before; questions on forums about hidden states between batches",
)  # fmt: skip
def state_of_other_samples(seen: Observation) -> Iterator[Evidence]:
    samples = seen.train.samples
    if samples is None or not samples.is_shuffled:
        return
    for step in seen.steps[1:]:
        size = batch_size(step)
        for name, value in step.carried:
            if size < 2 or size not in value.shape[:2]:
                continue
            call = _joined(step, value)
            if call is not None:
                yield Evidence(
                    f"{name} holds what the step before has made of other samples, and {call} goes"
                    " on from it, though the loader shuffles: each sequence begins with the state"
                    " of one that has nothing to do with it",
                    f"no state from before: self.{name.partition('[')[0]} = None at the start of a"
                    " batch, or lstm(x) without a state; or shuffle=False, for batches that"
                    " continue those before",
                    tuple(filter(None, [call.module])),
                )
                return


def _joined(step: Step, value: Value) -> Call | None:
    """Return the call that joins a value of the step before with this step's samples by rows."""
    waiting, seen = [value], {id(value)}
    while waiting:
        kept = waiting.pop(0)
        for call in step.users(kept):
            if id(call) not in step.reach:
                continue
            if call.name in _RECURRENT:
                if call.args and call.args[0] is not kept and call.data:
                    return call
                continue
            own = [x for x in call.data if x.shape]
            if _joins_rows(call, kept, own, batch_size(step)) and _leads_to_layer(step, call):
                return call
            is_masked = call.name == "mul" and not any(x.depth for x in own)
            for x in call.outputs if not own or is_masked else ():
                if id(x) not in seen:
                    seen.add(id(x))
                    waiting.append(x)
    return None


def _joins_rows(call: Call, kept: Value, own: list[Value], size: int) -> bool:
    """Return whether a call joins or adds rows of a value to those of this step's samples."""
    if not own or len(kept.shape) < 2 or any(x.shape[0] != size for x in [kept, *own]):
        return False
    if call.name in _JOINS:
        dimension = int(call.get(1, "dim", 1 if call.name == "hstack" else 0))
        return dimension % len(kept.shape) != 0
    return call.name in _SUMS and all(x.shape == kept.shape for x in own)


def _leads_to_layer(step: Step, call: Call) -> bool:
    """Return whether a layer follows on the way to the loss, so that it isn't part of the loss."""
    after = {id(one) for one in step.after_layers}
    return id(call) not in after and id(call) in step.reach
