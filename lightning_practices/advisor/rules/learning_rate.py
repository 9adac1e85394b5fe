"""A learning rate that is too large or too small for the weights."""

from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

from torch.optim import SGD, Adam, Adamax, NAdam

from lightning_practices._names import plain_name
from lightning_practices.advisor._fit import fit_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._schedules import peak_rate

# Changes of a weight by one step as a share of it. On the digits, perceptrons of two to six layers
# train with 1e-3 to 0.4 and fail from 4 on (Adam), or from 0.5 on (SGD). A linear model trains with
# 14, and networks with batch norm with 10.
_LARGE = {"adam": 3.0, "sgd": 0.5}
_LAYERS = 2  # with parameters: a linear model trains with nearly any rate
_INVARIANT = ("batch_norm", "sync_batch_norm")
_TRAVEL = 2e-3  # a fit in which no weight changes by more; 0.15 and more where accuracy rose
_USUAL = {"adam": (1e-6, 0.05), "sgd": (1e-5, 1.0)}


class _Change(NamedTuple):
    kind: str
    optimizer: str
    rate: float
    ratios: list[float]  # of the matrices, by a first step
    momentum: float


@rule(
    "LP641", "warning",
    practice="A step changes the weights by a small share",
    measures="the change of each matrix by the first step at the full rate, as a share of its norm",
    healthy="1e-3 to 0.4",
    source="Bengio, 2012, arXiv:1206.5533; Karpathy, A recipe for training neural networks",
)  # fmt: skip
def learning_rate_too_large(seen: Observation) -> Iterator[Evidence]:
    layers = max((root.depth for root in seen.step.roots), default=0)
    if layers < _LAYERS or any(call.name in _INVARIANT for call in seen.step.calls):
        return
    for change in _changes(seen):
        share = median(change.ratios)
        if share > _LARGE[change.kind]:
            usual = change.rate * 0.01 / share
            yield Evidence(
                f"{change.optimizer} with lr={change.rate:g} changes the median matrix by"
                f" {share:.2g} times its norm in the first step: training diverges or dies",
                f"lr={usual:.0e}, which changes it by 1 %",
                numbers={"ratio": share, "lr": change.rate},
            )


@rule(
    "LP642", "warning",
    practice="The fit is long enough for the weights to move",
    measures="the first step's largest change of a matrix, times the steps of the fit",
    healthy="0.1 and more",
    source="Bengio, 2012, arXiv:1206.5533",
)  # fmt: skip
def learning_rate_too_small(seen: Observation) -> Iterator[Evidence]:
    steps = fit_of(seen).steps
    if steps is None:
        return
    for change in _changes(seen):
        travel = max(change.ratios) * steps / (1 - change.momentum)
        if travel < _TRAVEL:
            yield Evidence(
                f"{change.optimizer} with lr={change.rate:g} changes no matrix by more than"
                f" {travel:.1e} of its norm in all {steps} steps: the model stays as it was"
                " initialised",
                f"lr={change.rate * 0.01 / max(change.ratios):.0e}, which changes it by 1 % a step"
                if max(change.ratios)
                else "lr=1e-3",
                numbers={"travel": travel, "lr": change.rate},
            )


@rule(
    "LP643", "hint",
    practice="The learning rate is in the usual range of its optimizer",
    measures="the largest rate of each optimizer",
    healthy="1e-6 to 0.05 for Adam, 1e-5 to 1 for SGD",
    source="Bengio, 2012, arXiv:1206.5533; Kingma and Ba, 2015, arXiv:1412.6980",
)  # fmt: skip
def learning_rate_unusual(seen: Observation) -> Iterator[Evidence]:
    for optimizer in seen.optimizers:
        kind = _kind_of(optimizer)
        if kind is None:
            continue
        low, high = _USUAL[kind]
        rates = [peak_rate(seen, optimizer, group) for group in optimizer.param_groups]
        rates = [rate for rate in rates if rate > high or 0 < rate < low or rate == 0 == max(rates)]
        if rates:
            yield Evidence(
                f"{_title(optimizer)} has lr={rates[0]:g}; usual are {low:g} to {high:g}",
                "lr=1e-3 for Adam, 0.1 for SGD, then larger and smaller by factors of 3",
                numbers={"lr": rates[0]},
            )


def _changes(seen: Observation) -> Iterator[_Change]:
    """Yield the first step's changes of each optimizer whose update is known."""
    names = {id(p): plain_name(name) for name, p in seen.module.named_parameters()}
    gradients = {
        name: gradient
        for step in seen.steps
        for name, gradient in step.gradients.items()
        if gradient is not None and gradient.norm > 0
    }
    for optimizer in seen.optimizers:
        kind = _kind_of(optimizer)
        if kind is None:
            continue
        ratios, rates = [], []
        for group in optimizer.param_groups:
            for p in group["params"]:
                name = names.get(id(p), "")
                weight, gradient = seen.weights.get(name), gradients.get(name)
                if weight is None or gradient is None or len(weight.shape) < 2:
                    continue
                size = weight.statistics.root_mean_square
                if size > 0:
                    step = gradient.norm / p.numel() ** 0.5 if kind == "sgd" else 1.0
                    rate = peak_rate(seen, optimizer, group)
                    ratios.append(rate * step / size)
                    rates.append(rate)
        if ratios:
            first = optimizer.param_groups[0]
            momentum = float(first.get("momentum", 0.0)) if kind == "sgd" else 0.0
            yield _Change(kind, _title(optimizer), max(rates), ratios, min(momentum, 0.99))


def _kind_of(optimizer: Any) -> str | None:
    if isinstance(optimizer, Adam | NAdam | Adamax):
        return "adam"
    return "sgd" if isinstance(optimizer, SGD) else None


def _title(optimizer: Any) -> str:
    return type(optimizer).__name__.removeprefix("Lightning")
