"""Gradients that are clipped to nearly nothing."""

import math
from collections.abc import Iterator

from torch.optim import SGD, Adam, Adamax, NAdam, Optimizer, RAdam, RMSprop

from lightning_practices.advisor._clipping import is_own_hook
from lightning_practices.advisor._observation import Observation, Updates
from lightning_practices.advisor._rule import Evidence, rule

_RULES = 0.05  # of the gradients' norm: a threshold below sets the length of each step
_SMALL = 0.01  # of a threshold; usual are 0.1 to 10
_STILL = 1e-5  # of the weights' norm, by a step; usual are 1e-4 to 1e-2
_MOMENTUM = 0.99


@rule(
    "LP651", "warning",
    practice="Clipping leaves gradients large enough to train",
    measures="the norm of the gradients at the first step of an optimizer, after the module's own"
    " clipping, and by the Trainer's gradient_clip_val, beside that after the backward pass; the"
    " change of the weights by a step of SGD, and the gradients of Adam and RMSprop beside their"
    " eps",
    healthy="a change of 1e-5 of the weights' norm and more; gradients above eps",
    source="Pascanu et al., 2013, arXiv:1211.5063; questions on forums about a loss that doesn't"
    " fall",
)  # fmt: skip
def clipping_too_tight(seen: Observation) -> Iterator[Evidence]:
    if seen.observer.precision == "16-mixed":  # gradients are scaled
        return
    for optimizer, updates in zip(seen.optimizers, seen.updates, strict=False):
        gradients, weights, elements = _norms(seen, optimizer)
        clipped = _clipped(seen, updates, gradients, elements)
        if not 0 < clipped < min(_RULES * gradients, _SMALL) or not weights:
            continue
        name = type(optimizer).__name__.removeprefix("Lightning")
        rates = [max(float(g["lr"]), float(g.get("initial_lr", 0))) for g in optimizer.param_groups]
        group = optimizer.param_groups[0]
        what = f"gradients of norm {gradients:.2g} are clipped to {clipped:.2g}"
        if isinstance(optimizer, SGD):
            momentum = min(float(group["momentum"]), _MOMENTUM)
            change = max(rates) * clipped / weights / (1 - momentum)
            if change < _STILL:
                yield Evidence(
                    f"{what}: a step of {name} changes the weights by {change:.1e} of their norm,"
                    f" so that 1 % takes {0.01 / change:.0e} steps",
                    f"gradient_clip_val={_first_digit(gradients):g}, near the usual norm",
                    numbers={"change": change, "clipped": clipped, "norm": gradients},
                )
        elif isinstance(optimizer, Adam | NAdam | RAdam | RMSprop | Adamax):
            each, eps = clipped / elements**0.5, float(group["eps"])
            if each < eps:
                yield Evidence(
                    f"{what}: one element is {each:.1e}, below eps={eps:g} of {name}, which then"
                    f" divides its steps by {1 + eps / each:.0f}",
                    f"gradient_clip_val={_first_digit(gradients):g}, near the usual norm",
                    numbers={"element": each, "clipped": clipped, "norm": gradients},
                )


def _norms(seen: Observation, optimizer: Optimizer) -> tuple[float, float, int]:
    """Return the norms of an optimizer's gradients and weights, and how many elements they have."""
    names = {seen.names.get(id(p), "") for g in optimizer.param_groups for p in g["params"]}
    found = [
        (gradient.norm, seen.weights[name])
        for name, gradient in seen.step.gradients.items()
        if gradient is not None and name in names and name in seen.weights
    ]
    counts = [math.prod(weight.shape) for _, weight in found]
    roots = [weight.statistics.root_mean_square for _, weight in found]
    size = math.sqrt(sum(root**2 * n for root, n in zip(roots, counts, strict=True)))
    return math.hypot(*(norm for norm, _ in found)), size, sum(counts)


def _clipped(seen: Observation, updates: Updates, gradients: float, elements: int) -> float:
    """Return the norm of the gradients that an optimizer gets, after all clipping."""
    found = gradients if updates.norm is None else updates.norm
    value = None if seen.trainer is None else seen.trainer.gradient_clip_val
    if is_own_hook(seen.module):  # which has run, in place of the Trainer's clipping
        return found
    if value and seen.module.automatic_optimization:
        is_norm = seen.trainer is None or seen.trainer.gradient_clip_algorithm != "value"
        found = min(found, float(value) * (1 if is_norm else elements**0.5))
    return found


def _first_digit(x: float) -> float:
    """Return a number in its first digit."""
    size = 10.0 ** math.floor(math.log10(x))
    return math.floor(x / size) * size
