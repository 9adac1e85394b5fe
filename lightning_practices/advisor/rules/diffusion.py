"""Diffusion models whose noise is uniform, or that aren't told how much of it there is."""

import math
from collections.abc import Iterator

from torch import Tensor

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of, losses_seen
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import REGRESSION, Call, Loss, Value

_NORMAL = frozenset({"randn", "randn_like", "normal"})
_SUMS = frozenset({"add", "sub", "lerp"})
_RANDOM = frozenset({"rand", "rand_like", "uniform"})
_FEWEST = 256  # elements
_STD = 12**-0.5
_NEAR = 0.04


@rule(
    "LP271", "warning",
    practice="The noise of a diffusion model is normal",
    measures="the distribution of a random target that is added to the batch before the network",
    healthy="mean 0 and standard deviation 1",
    source="Ho et al., 2020, arXiv:2006.11239: epsilon from N(0, I); torch.rand_like is uniform,"
    " randn_like is normal",
)  # fmt: skip
def uniform_noise(seen: Observation) -> Iterator[Evidence]:
    for _, loss in losses_seen(seen, REGRESSION):
        noise = loss.target.origin()
        if noise.call is None or noise.call.name not in _RANDOM or noise.requires_grad:
            continue
        x = loss.target.tensor
        if x is None or not _is_uniform(x) or _sum(loss, noise) is None:
            continue
        yield Evidence(
            f"the network predicts noise of {noise.call}, which is added to the batch and uniform"
            f" in [0, 1): its mean is {float(x.mean()):.2g} and its standard deviation"
            f" {float(x.std()):.2g}, where a diffusion has 0 and 1",
            "noise = torch.randn_like(x)",
            tuple(filter(None, [layer_of(loss.prediction)])),
        )


@rule(
    "LP272", "hint",
    practice="A network that predicts noise knows how much there is",
    measures="ways to the prediction from the factors with which each sample and its noise are"
    " added, besides the sum itself",
    healthy="the time step, or the factor, is an input; networks without it need its share to show"
    " in the sample",
    source="Ho et al., 2020, arXiv:2006.11239: epsilon(x, t); Sun et al., 2025, arXiv:2502.13129,"
    " on models without",
)  # fmt: skip
def noise_of_unknown_size(seen: Observation) -> Iterator[Evidence]:
    for _, loss in losses_seen(seen, REGRESSION):
        noise = loss.target.origin()
        if noise.call is None or noise.call.name not in _NORMAL or noise.requires_grad:
            continue
        mix = _sum(loss, noise)
        factors = [] if mix is None else list(_factors(mix))
        if mix is None or not factors:
            continue
        within = {id(mix), *(id(call) for call in mix.output.before())}
        known = {id(x) for factor in factors for x in _upstream(factor)}
        outside = [call for call in loss.prediction.before() if id(call) not in within]
        if not any(id(x) in known for call in outside for x in call.inputs):
            yield Evidence(
                f"{mix} adds noise in another proportion to each sample, and the network that"
                " predicts it gets nothing from which this was computed: it isn't told the time"
                " step",
                "self.net(noisy, t), with an embedding of t in the network",
                tuple(filter(None, [layer_of(loss.prediction)])),
            )


def _factors(mix: Call) -> Iterator[Value]:
    """Yield the factors of a sum's terms that have one element for each sample."""
    for term in mix.inputs:
        call = term.maker()
        if call is None or call.name != "mul":
            continue
        for x in call.inputs:
            count = math.prod(x.shape)
            if count == mix.output.shape[0] > 1 and count < math.prod(mix.output.shape):
                yield x


def _upstream(value: Value) -> Iterator[Value]:
    """Yield a value and those from which it was computed, but for the batch."""
    yield value
    for call in value.before():
        yield from (x for x in (*call.inputs, *call.outputs) if not _is_batch(x))


def _is_batch(value: Value) -> bool:
    return (value.source or "").startswith("batch")


def _is_uniform(x: Tensor) -> bool:
    if x.numel() < _FEWEST or not x.is_floating_point():
        return False
    x = x.float()
    is_within = float(x.amin()) >= 0 and float(x.amax()) <= 1
    return is_within and abs(float(x.mean()) - 0.5) < _NEAR and abs(float(x.std()) - _STD) < _NEAR


def _sum(loss: Loss, noise: Value) -> Call | None:
    """Return the call that adds the noise to as many elements of the batch, before the network."""
    for call in loss.prediction.before():
        if call.name not in _SUMS or call.output.depth or len(call.inputs) < 2:
            continue
        has = [_holds(x, noise) for x in call.inputs[:2]]
        others = [x for x, holds in zip(call.inputs, has, strict=False) if not holds]
        is_batch = any(x.shape == noise.shape and _holds_batch(x) for x in others)
        if any(has) and is_batch and call.output.shape == noise.shape:
            return call
    return None


def _holds(value: Value, noise: Value) -> bool:
    if value.origin() is noise:
        return True
    return any(x.origin() is noise for call in value.before() for x in call.inputs)


def _holds_batch(value: Value) -> bool:
    """Return whether a value depends on the batch otherwise than by the shape of random numbers."""
    waiting, seen = [value], {id(value)}
    while waiting:
        value = waiting.pop()
        if _is_batch(value):
            return True
        if value.call is None or value.call.name.endswith("_like"):
            continue
        for x in value.call.inputs:
            if id(x) not in seen:
                seen.add(id(x))
                waiting.append(x)
    return False
