"""Gradients that vanish or explode from layer to layer."""

import math
from collections.abc import Iterator, Sequence
from statistics import median

from lightning_practices.advisor._looks import Look
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._run import Run

# The gradient of the first layer of a branch by that of the last, root mean squares. Healthy
# programs and fits of the tests: 0.011 to 9.9; with thirty layers and residuals 0.5 to 1.3. Layers
# of branches that end apart, as a policy and a value, have gradients of any ratio.
_VANISHING = 1e-3
_EXPLODING = 70.0
_LOOKS, _STEPS = 3, 10  # for how long
_LAYERS = 3
_GROWN = 3.0  # the norm of the gradients by its median before, when it begins to grow
_RISEN = 1.5  # the loss now by the one at the start
_TINY = 1e-12  # the last layer's own gradient has vanished too: the fit has converged


def _optimizers(look: Look) -> list[int]:
    return sorted({one.optimizer for one in look.weights.values()})


def _ends(look: Look, optimizer: int) -> dict[tuple[str, str], float]:
    """Return the ratio of the gradients of the first and the last layer of each branch."""
    found = {}
    for layers in look.branches(optimizer):
        (first, a), (last, b) = layers[0], layers[-1]
        if len(layers) >= _LAYERS and b.gradient > _TINY:
            found[first, last] = a.gradient / b.gradient
    return found


def _lasting(looks: Sequence[Look], optimizer: int) -> Iterator[tuple[str, str, list[float]]]:
    """Yield the first and last layers of the branches that are in all looks, and their ratios."""
    ends = [_ends(look, optimizer) for look in looks]
    for first, last in ends[0] if ends else ():
        if all((first, last) in one for one in ends):
            yield first, last, [one[first, last] for one in ends]


@rule(
    "LP802", "warning",
    practice="Gradients reach the first layers",
    measures="root mean square of the gradient of a branch's first layer, divided by that of its"
    " last",
    healthy="0.011 to 9.9",
    source="Glorot and Bengio, 2010, Understanding the difficulty of training deep feedforward"
    " neural networks; lecture S4, weight initialization",
)  # fmt: skip
def vanishing_gradients(run: Run) -> Iterator[Evidence]:
    looks = run.last_looks(_LOOKS, _STEPS)[-_LOOKS:]
    for optimizer in _optimizers(looks[-1]) if looks else ():
        for first, last, ratios in _lasting(looks, optimizer):
            if not all(ratio < _VANISHING for ratio in ratios):
                continue
            yield Evidence(
                f"the gradient of {first} is {ratios[-1]:.1e} of that of {last} in each of the last"
                f" {len(looks)} looks: the first layers hardly learn",
                "ReLU in place of sigmoid or tanh, batch or layer norm, residual connections, or"
                " lightning_practices.init.initialize(model, batch=batch)",
                (_module(first),),
                {"ratio": ratios[-1]},
            )


@rule(
    "LP803", "warning",
    practice="Gradients stay of one size while the loss falls",
    measures="the gradient of a branch's first layer by its last's; the norm by its median, if the"
    " loss is of data; the loss",
    healthy="up to 10 times, with a loss that falls",
    source="Pascanu et al., 2013, On the difficulty of training recurrent neural networks",
)  # fmt: skip
def exploding_gradients(run: Run) -> Iterator[Evidence]:
    looks, risen = run.looks, _rise(run.losses)
    if len(looks) < 2 or risen is None:
        return
    for optimizer in _optimizers(looks[-1]):
        explode = [
            (first, last, ratios[-1])
            for first, last, ratios in _lasting(looks[-2:], optimizer)
            if all(ratio > _EXPLODING for ratio in ratios)
        ]
        norms = [x.norms[optimizer].before for x in looks if optimizer in x.norms]
        if explode:
            first, last, ratio = explode[0]
            seen, modules = f"the gradient of {first} is {ratio:.0f} times that of {last}", [first]
        elif run.is_of_data and len(norms) > 2 and norms[-1] > _EXPLODING * median(norms[:-1]):
            modules = _grown([x for x in looks if optimizer in x.norms], optimizer)
            begun = f", first that of {modules[0]}" if modules else ""
            usual = median(norms[:-1])
            seen = f"the norm of the gradients has grown from {usual:.3g} to {norms[-1]:.3g}{begun}"
        else:
            continue
        yield Evidence(
            f"{seen}, and the loss has risen from {risen[0]:.3g} to {risen[1]:.3g}",
            "GradientClipping(1.0), a smaller learning rate, or a norm between the layers",
            tuple(_module(name) for name in modules),
            {"rise": risen[1] / risen[0]},
        )


def _grown(looks: Sequence[Look], optimizer: int) -> list[str]:
    """Return the layers whose gradients grew the most when the norm began to grow."""
    norms = [look.norms[optimizer].before for look in looks]
    place = len(looks) - 1
    while place > 1 and norms[place - 1] > _GROWN * median(norms[: place - 1]):
        place -= 1
    growth = {}
    for name, one in looks[place].layers(optimizer):
        earlier = [x.weights[name].gradient for x in looks[:place] if name in x.weights]
        if earlier and median(earlier) > 0:
            growth[name] = one.gradient / median(earlier)
    most = max(growth.values(), default=0.0)
    found = [name for name in growth if growth[name] >= most / 2]
    return sorted(found, key=lambda name: -growth[name])


def _rise(losses: Sequence[tuple[int, float]]) -> tuple[float, float] | None:
    """Return the greater of the first two losses, and the last one if it is higher by far."""
    values = [loss for _, loss in losses]
    if len(values) < 3:
        return None
    before, now = max(values[:2]), values[-1]
    has_risen = now > _RISEN * before or not math.isfinite(now)
    return (before, now) if has_risen and before > 0 else None


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]
