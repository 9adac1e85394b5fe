"""Weights that begin with the same value for all units, or with values that aren't numbers."""

import math
from collections.abc import Iterator

from lightning_practices._names import some
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._parameters import owner
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._weights import (
    hidden_weights,
    is_grouped,
    is_symmetric,
    moves,
)

_LARGEST = 1e6  # of a weight; healthy programs have 10 at most
_UNITS_BY_ROW = ("linear", "bilinear", "conv1d", "conv2d", "conv3d", "lstm", "gru", "rnn_tanh",
                 "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")  # fmt: skip


@rule(
    "LP401", "error",
    practice="Weights begin with different values for each unit",
    measures="rows of hidden layers' weights that equal each other and aren't 0",
    healthy="none; a last layer may begin so",
    source="Goodfellow, Bengio and Courville, 2016, Deep Learning, section 8.4: the initial"
    " parameters need to break symmetry; lectures S1 and S4, weight initialization",
)  # fmt: skip
def constant_weights(seen: Observation) -> Iterator[Evidence]:
    for name, call, follows in hidden_weights(seen):
        weight = seen.weights[name]
        is_constant = weight.statistics.std == 0 or (
            weight.equal_rows == 1.0 and call.name in _UNITS_BY_ROW
        )
        if not follows or not is_constant or weight.statistics.high == 0 == weight.statistics.low:
            continue
        if is_grouped(call) or weight.shape[0] < 2:
            continue
        if call.name not in _UNITS_BY_ROW and not is_symmetric(seen, name):
            continue
        yield Evidence(
            f"All rows of {name} {weight.shape} are equal (mean {weight.statistics.mean:.3g}):"
            f" its {weight.shape[0]} units compute the same, and learn the same",
            "lightning_practices.init.initialize(self)",
            tuple(one for one in (owner(name), name) if one),
            {"mean": weight.statistics.mean},
        )


@rule(
    "LP402", "error",
    practice="Weights of hidden layers don't stay at zero",
    measures="weights of hidden layers that begin at 0, and after the first steps are 0 still, or"
    " have equal rows",
    healthy="0 at the start in last layers, branches and adapters, which move in the first steps",
    source="Goodfellow, Bengio and Courville, 2016, Deep Learning, section 8.4",
)  # fmt: skip
def zero_weights(seen: Observation) -> Iterator[Evidence]:
    if moves(seen) < 1:
        return
    found = []
    for name, call, follows in hidden_weights(seen):
        statistics = seen.weights[name].statistics
        if not follows or statistics.zero < 1.0 or is_grouped(call):
            continue
        gradients = [step.gradients.get(name) for step in seen.steps]
        is_stuck = all(one is not None and one.zero for one in gradients) and len(seen.steps) >= 3
        is_alike = any(one is not None and not one.zero for one in gradients) and (
            seen.weights[name].shape[0] > 1
            and not _is_zero(seen, name)
            and is_symmetric(seen, name)
        )
        if is_stuck or is_alike:
            found.append(name)
    if found:
        yield Evidence(
            f"The weights of {some([owner(name) or name for name in found])} begin at 0 and"
            f" {'stay there' if _is_zero(seen, found[0]) else 'keep equal rows'} in"
            f" {len(seen.steps)} steps: no signal and no gradient passes them",
            "lightning_practices.init.initialize(self)",
            tuple(dict.fromkeys(one for name in found for one in (owner(name), name) if one)),
            {"weights": len(found)},
        )


def _is_zero(seen: Observation, name: str) -> bool:
    found = dict(seen.module.named_parameters()).get(name)
    return found is not None and not bool(found.any())


@rule(
    "LP405", "error",
    practice="Weights are finite numbers",
    measures="parameters with nan or infinite values, or values above 1e6, before the first step",
    healthy="none; buffers, such as masks, may hold infinite values",
    source="torch.empty: its memory isn't initialised",
)  # fmt: skip
def weights_that_are_no_numbers(seen: Observation) -> Iterator[Evidence]:
    names = set(seen.names.values())
    for name, weight in seen.weights.items():
        statistics = weight.statistics
        largest = max(abs(statistics.low), abs(statistics.high))
        bad = 1 - statistics.finite
        if name not in names or math.isnan(statistics.finite) or not math.prod(weight.shape):
            continue
        if bad > 0 or largest > _LARGEST:
            what = (
                f"{bad:.2%} of its values are nan or infinite" if bad > 0
                else f"its largest value is {largest:.2g}"
            )  # fmt: skip
            yield Evidence(
                f"{name} {weight.shape} is no sensible weight: {what}, as in memory that isn't"
                " initialised, or in a broken checkpoint",
                "lightning_practices.init.initialize(self), or nn.init.normal_(p, std=0.02)",
                tuple(one for one in (owner(name), name) if one),
                {"not_finite": bad, "largest": largest},
            )
