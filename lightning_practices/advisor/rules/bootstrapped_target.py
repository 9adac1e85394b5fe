"""Targets of reinforcement learning that are made of the network's own values."""

from collections.abc import Iterator
from typing import NamedTuple

from lightning_practices.advisor._bootstrapped import next_value
from lightning_practices.advisor._fit import mentions
from lightning_practices.advisor._gradient_paths import parameters_behind
from lightning_practices.advisor._observation import Observation, Step, once
from lightning_practices.advisor._parameters import concerned, optimized
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import REGRESSION, Call, Value

_DIFFERENCES = frozenset({"sub", "rsub", "__rsub__"})
_DISTANCES = frozenset({"pow", "square", "abs", "mul", "norm", "linalg_vector_norm"})
_REMEDY = (
    "with torch.no_grad(): target = reward + discount * (1 - done) * next_value, or"
    " target.detach(): the gradient is that of the prediction alone"
)
_SOURCE = (
    "Mnih et al., 2015, Human-level control through deep reinforcement learning: the target's"
    " parameters are fixed; Baird, 1995, Residual algorithms, where the target's gradient is meant"
)


@rule(
    "LP134", "warning",
    practice="The target of Q-learning has no gradient",
    measures="a distance between a prediction and a reward plus the discounted largest value, where"
    " gradients reach trained parameters by both",
    healthy="a target under no_grad or detached",
    source=_SOURCE,
)  # fmt: skip
def target_of_best_value(seen: Observation) -> Iterator[Evidence]:
    yield from (_evidence(seen, one) for one in _pairs(seen) if one.is_best)


@rule(
    "LP135", "hint",
    practice="The target of a value function has no gradient",
    measures="as LP134, for the next state's value in place of the largest one, by the network that"
    " makes the prediction",
    healthy="a target under no_grad or detached; a residual gradient on purpose",
    source=_SOURCE,
    explained_by=("LP134",),
)  # fmt: skip
def target_of_next_value(seen: Observation) -> Iterator[Evidence]:
    yield from (_evidence(seen, one) for one in _pairs(seen) if not one.is_best)


class _Pair(NamedTuple):
    """A distance whose target is bootstrapped.

    Attributes:
        call: The distance, or the difference within it.
        value: The value of the next state within the target.
        is_best: Whether it is the largest of several, as in Q-learning.
        names: The trained parameters that the target's gradient reaches.
    """

    call: Call
    value: Call
    is_best: bool
    names: set[str]


def _evidence(seen: Observation, one: _Pair) -> Evidence:
    return Evidence(
        f"the target of {one.call} has a gradient: it is a reward plus the discounted value of"
        f" {one.value}, so that a step draws the next state's value to the prediction too",
        _REMEDY,
        concerned(seen, sorted(one.names)),
        {"parameters": len(one.names)},
    )


@once
def _pairs(seen: Observation) -> list[_Pair]:
    held = optimized(seen).keys()
    found: dict[str, _Pair] = {}
    for step in seen.steps:
        for call, ends in _ends(step):
            for prediction, target in (ends, ends[::-1]):
                behind = parameters_behind(prediction) & held
                names = parameters_behind(target) & held
                found_value = next_value(target, lambda x: x.requires_grad)
                if found_value is None or not behind or not names:
                    continue
                value, is_best = found_value.call, found_value.is_best
                # The network has run twice: on the states, and on those that follow.
                layer = next((one for one in value.output.before() if one.is_layer), None)
                is_apart = all(one is not layer for one in prediction.before())
                if is_apart and (is_best or names == behind):
                    found.setdefault(call.line, _Pair(call, value, is_best, names))
    return list(found.values())


def _ends(step: Step) -> Iterator[tuple[Call, tuple[Value, Value]]]:
    """Yield distances with a gradient on both sides, with these."""
    for loss in step.losses:
        if loss.kind in REGRESSION and loss.prediction.requires_grad and loss.target.requires_grad:
            yield loss.call, (loss.prediction, loss.target)
    for call in step.after_layers:
        if call.name in _DIFFERENCES and len(call.inputs) == 2:
            first, second = call.inputs
            is_distance = any(user.name in _DISTANCES for user in step.users(call.output))
            if first.requires_grad and second.requires_grad and is_distance:
                yield call, (first, second)


@rule(
    "LP136", "hint",
    practice="A target network is a copy",
    measures="a module with two names, one of which is that of a target or an average, that code"
    " copies weights to",
    healthy="copy.deepcopy(network); one network for both, on purpose, as in SimSiam",
    source="Mnih et al., 2015, Human-level control through deep reinforcement learning; questions"
    " on forums about self.target = self.net",
)  # fmt: skip
def target_is_the_network(seen: Observation) -> Iterator[Evidence]:
    names: dict[int, list[str]] = {}
    for name, part in seen.module.named_modules(remove_duplicate=False):
        if name and any(True for _ in part.parameters()):
            names.setdefault(id(part), []).append(name)
    for same in names.values():
        targets = [name for name in same if _is_target(name)]
        others = [name for name in same if not _is_target(name)]
        if targets and others and mentions(type(seen.module), *_UPDATES):
            yield Evidence(
                f"{targets[0]} and {others[0]} are one module: what is copied to the one is in the"
                " other already, and the target moves with each step",
                f"self.{targets[0]} = copy.deepcopy(self.{others[0]}).requires_grad_(False)",
                (others[0], targets[0]),
            )
            return


_UPDATES = ("load_state_dict", "lerp_", "copy_", "update_parameters")


def _is_target(name: str) -> bool:
    last = name.rpartition(".")[2].lower()
    return any(part in last for part in ("target", "teacher", "ema", "momentum"))
