"""Units that are dead, and activations that are saturated."""

from collections.abc import Iterator, Sequence

from lightning_practices.advisor._looks import ActivationLook, Look
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._run import Run

# In the healthy programs and fits of the tests no layer has 90 % of its units silent in a single
# batch, and at most 23 % of the results of a hidden tanh or sigmoid are at the ends of its range.
_DEAD = 0.9
_SATURATED = 0.5
_LOOKS, _STEPS = 4, 30  # for how long


def _lasting(looks: Sequence[Look], kinds: Sequence[str]) -> Iterator[list[ActivationLook]]:
    """Yield the looks at each activation that is in all of ``looks``."""
    found: dict[tuple[str, ...], list[ActivationLook]] = {}
    for look in looks:
        for one in look.activations:
            if one.kind in kinds:
                found.setdefault((one.kind, *one.modules), []).append(one)
    yield from (seen for seen in found.values() if len(seen) >= len(looks))


@rule(
    "LP804", "hint",
    practice="Units are alive",
    measures="the units of a ReLU that are positive for no sample of the batches looked at",
    healthy="below 90 % of a layer's units in each batch",
    source="Lu et al., 2020, Dying ReLU and initialization; TheDeepChecker",
)  # fmt: skip
def dead_units(run: Run) -> Iterator[Evidence]:
    looks = run.last_looks(_LOOKS, _STEPS)
    dead = []
    for seen in _lasting(looks, ["relu"]):
        always = set(seen[0].dead).intersection(*(one.dead for one in seen))
        if len(always) >= _DEAD * seen[-1].units:
            dead.append((seen[-1], len(always) / seen[-1].units))
    if dead:
        first, share = dead[0]
        begun = looks[0].step
        yield Evidence(
            f"{share:.0%} of the {first.units} units of {_named(first)} were positive in none of"
            f" {len(looks)} batches since step {begun}: they get no gradient"
            + (f"; so it is in {len(dead) - 1} more" if len(dead) > 1 else ""),
            "nn.LeakyReLU(0.01) or nn.GELU() in its place, a smaller learning rate, or biases of 0",
            tuple(dict.fromkeys(name for one, _ in dead for name in one.modules)),
            {"share": share},
        )


@rule(
    "LP805", "warning",
    practice="Activations are not saturated",
    measures="share of a hidden tanh's results above 0.99 in size, of a sigmoid's within 0.005 of"
    " 0 or 1",
    healthy="at most 23 %",
    source="Glorot and Bengio, 2010; lecture S4, random initialization with larger variance",
)  # fmt: skip
def saturated_activations(run: Run) -> Iterator[Evidence]:
    looks = run.last_looks(_LOOKS, _STEPS)[-_LOOKS:]
    found = [
        seen[-1]
        for seen in _lasting(looks, ["tanh", "sigmoid"])
        if all(one.saturated > _SATURATED for one in seen)
    ]
    if found:
        first = max(found, key=lambda one: one.saturated)
        yield Evidence(
            f"{first.saturated:.0%} of the results of {_named(first)} are at the ends of its range"
            f" in each of the last {len(looks)} looks: their gradients are near 0",
            "standardise the inputs, lightning_practices.init.initialize(model, batch=batch), a"
            " norm before the activation, or nn.ReLU() in its place",
            tuple(dict.fromkeys(name for one in found for name in one.modules)),
            {"share": first.saturated},
        )


def _named(one: ActivationLook) -> str:
    return f"{one.kind} ({', after '.join(one.modules)})" if one.modules else one.kind
