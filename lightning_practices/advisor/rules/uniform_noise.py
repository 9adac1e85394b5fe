"""A diffusion model whose noise is uniform."""

from collections.abc import Iterator

from torch import Tensor

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of, losses_seen
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import REGRESSION, Loss, Value

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
        if x is None or not _is_uniform(x) or not _is_added(loss, noise):
            continue
        yield Evidence(
            f"the network predicts noise of {noise.call}, which is added to the batch and uniform"
            f" in [0, 1): its mean is {float(x.mean()):.2g} and its standard deviation"
            f" {float(x.std()):.2g}, where a diffusion has 0 and 1",
            "noise = torch.randn_like(x)",
            tuple(filter(None, [layer_of(loss.prediction)])),
        )


def _is_uniform(x: Tensor) -> bool:
    if x.numel() < _FEWEST or not x.is_floating_point():
        return False
    x = x.float()
    is_within = float(x.amin()) >= 0 and float(x.amax()) <= 1
    return is_within and abs(float(x.mean()) - 0.5) < _NEAR and abs(float(x.std()) - _STD) < _NEAR


def _is_added(loss: Loss, noise: Value) -> bool:
    """Return whether the noise is added to as many elements of the batch before the network."""
    size = noise.shape[0] if noise.shape else 0
    for call in loss.prediction.before():
        if call.name not in _SUMS or call.output.depth or len(call.inputs) < 2:
            continue
        has = [_holds(x, noise) for x in call.inputs[:2]]
        others = [x for x, holds in zip(call.inputs, has, strict=False) if not holds]
        is_batch = any(x.shape == noise.shape and _holds_batch(x) for x in others)
        if any(has) and is_batch and size == call.output.shape[0]:
            return True
    return False


def _holds(value: Value, noise: Value) -> bool:
    if value.origin() is noise:
        return True
    return any(x.origin() is noise for call in value.before() for x in call.inputs)


def _holds_batch(value: Value) -> bool:
    """Return whether a value depends on the batch otherwise than by the shape of random numbers."""
    waiting, seen = [value], {id(value)}
    while waiting:
        value = waiting.pop()
        if (value.source or "").startswith("batch"):
            return True
        if value.call is None or value.call.name.endswith("_like"):
            continue
        for x in value.call.inputs:
            if id(x) not in seen:
                seen.add(id(x))
                waiting.append(x)
    return False
