"""A denoiser whose target is the noisy input that it gets."""

from collections.abc import Iterator

from lightning_practices.advisor._kinds import PASSED
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import layer_of, losses_seen
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._signs import terms_of
from lightning_practices.advisor._trace import REGRESSION, Call, Loss, Value
from lightning_practices.advisor._weighted import number_of

_NORMAL = frozenset({"randn", "randn_like", "normal"})
_RANDOM = _NORMAL | {
    "rand", "rand_like", "randint", "randint_like", "randperm", "uniform", "multinomial",
    "bernoulli", "exponential", "log_normal", "random",
}  # fmt: skip
_SUMS = frozenset({"add", "sub", "rsub", "__rsub__"})
_SCALED = frozenset({"mul", "div", "true_divide"})
_JOINS = frozenset({"cat", "concat", "concatenate"})
_LEAST = 0.1  # factor of the noise; noise that fills the steps of integers is below


@rule(
    "LP282", "error",
    practice="A denoiser doesn't predict its own input",
    measures="targets that are the very tensor which the network gets, with noise in it whose"
    " random level it gets too, or where no narrower layer and no other term is there",
    healthy="the noise, the sample without noise, or what both give; autoencoders of their input,"
    " with noise as augmentation",
    source="Ho et al., 2020, arXiv:2006.11239, algorithm 1: the target is the noise",
)  # fmt: skip
def denoiser_of_its_input(seen: Observation) -> Iterator[Evidence]:
    for step, loss in losses_seen(seen, REGRESSION):
        noisy = _kept(loss.target)
        found = None if noisy.requires_grad or noisy.depth else _noise_in(noisy)
        if found is None or not _is_read(loss.prediction, noisy):
            continue
        noise, factors = found
        draws = [call for x in factors for call in x.before() if call.name in _RANDOM]
        is_told = _reads_beside(loss.prediction, noisy, draws)
        is_noise = bool(draws) or _level(noisy, noise) >= _LEAST
        if is_told or (is_noise and not _is_limited(step, loss, noisy)):
            yield Evidence(
                f"the target of {loss.call} is the network's input itself, with the noise of"
                f" {noise} in it: the network learns to repeat its input, and no denoising",
                "mse_loss(prediction, noise), or mse_loss(prediction, x) with the sample without"
                " noise",
                tuple(filter(None, [layer_of(loss.prediction)])),
            )


def _kept(value: Value) -> Value:
    """Return a value before views, copies and ``detach``."""
    value = value.origin()
    while value.call is not None and value.call.name == "detach" and value.call.inputs:
        value = value.call.inputs[0].origin()
    return value


def _noise_in(value: Value) -> tuple[Call, list[Value]] | None:
    """Return the normal noise that is added within a value to data, and its factors."""
    call = value.call
    if call is None or len(call.inputs) < 2:
        return None
    if call.name == "lerp":
        ends, shares = call.inputs[:2], call.inputs[2:]
    elif call.name in _SUMS:
        ends, shares = call.inputs, []
    else:
        return None
    for place, end in enumerate(ends[:2]):
        factors = _factors(end)
        noises = [one for x in factors if (one := _kept(x).call) and one.name in _NORMAL]
        others = [x for i, x in enumerate(ends[:2]) if i != place]
        if noises and any(_is_of_batch(x) for x in others):
            return noises[0], [*(x for x in factors if _kept(x).call is not noises[0]), *shares]
    return None


def _factors(value: Value) -> list[Value]:
    call = _kept(value).call
    if call is None or call.name not in _SCALED:
        return [value]
    return [one for x in call.inputs for one in _factors(x)]


def _is_of_batch(value: Value) -> bool:
    """Return whether a value holds data of the batch, and isn't drawn in its shape alone."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if value.call is None:
            if (value.source or "").startswith("batch"):
                return True
        elif value.call.name not in _RANDOM | {"zeros_like", "ones_like", "full_like"}:
            waiting += value.call.inputs
    return False


def _is_read(prediction: Value, noisy: Value) -> bool:
    """Return whether a layer on the way to a prediction gets a value, alone, scaled or joined."""
    for call in prediction.before():
        waiting = [x for x in call.inputs if x.parameter is None] if call.is_layer else []
        while waiting:
            value = _kept(waiting.pop())
            if value is noisy:
                return True
            if value.call is not None and value.call.name in _SCALED | _JOINS | PASSED:
                waiting += value.call.inputs
    return False


def _reads_beside(prediction: Value, noisy: Value, draws: list[Call]) -> bool:
    """Return whether a network gets random numbers otherwise than within its noisy input."""
    waiting, seen = [prediction.origin()], {id(noisy), id(noisy.call)}
    while waiting:
        call = waiting.pop().origin().call
        if call is None or id(call) in seen:
            continue
        if any(call is one for one in draws):
            return True
        seen.add(id(call))
        waiting += call.inputs
    return False


def _level(noisy: Value, noise: Call) -> float:
    """Return the number that the noise is multiplied by within a sum; 0 if it isn't known."""
    for end in noisy.call.inputs if noisy.call is not None else ():
        if _kept(end).call is noise:
            return 1.0
        call = _kept(end).call
        if call is not None and call.name == "mul" and len(call.args) == 2:
            for x, other in (call.args, call.args[::-1]):
                number = number_of(other)
                if isinstance(x, Value) and _kept(x).call is noise and number is not None:
                    return abs(number)
    return 0.0


def _is_limited(step: Step, loss: Loss, noisy: Value) -> bool:
    """Return whether a narrow layer, or another term of the loss, keeps a network from copying."""
    is_narrow = any(
        _size(call.output) < _size(noisy) for call in loss.prediction.before() if call.is_layer
    )
    return is_narrow or any(len([*terms_of(root, products=False)]) > 1 for root in step.roots)


def _size(value: Value) -> int:
    """Return the number of elements of a sample."""
    size = 1
    for length in value.shape[1:]:
        size *= length
    return size
