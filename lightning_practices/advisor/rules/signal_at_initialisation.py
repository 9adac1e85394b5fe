"""Signals that vanish, explode, saturate or die before the first step."""

import math
from collections.abc import Iterator

from torch import Tensor

from lightning_practices.advisor._gradient_paths import Paths
from lightning_practices.advisor._kinds import LAYERS, NORMS
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import rectifies
from lightning_practices.advisor._parameters import owner
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Value

_DEEP = 3  # layers, from which on depth matters
# Standard deviation over the samples by root mean square, before the last layer, relative to the
# input: 0.07 and more on the healthy programs; plain networks by torch's default that train on
# the digits: 0.006 (8 layers, ReLU), 0.002 (8, GELU), 0.005 (12, tanh).
_FLAT = 1e-4
_NEARLY_FLAT = 2e-3  # counts if gradients vanish too
# Root mean square of the gradients of the first layers' weights by those of the last: 0.008 and
# more on the healthy programs; 0.0003 in 5 layers with sigmoid, which train slowly.
_GRADIENT = 1e-3
# Variation before the last layer: 1e-4 in 5 layers of N(0, 0.02²), which train; 6e-6 in 5 of
# N(0, 0.01²), which hardly do.
_SMALL = 2e-5
_LARGE = 50.0  # variation of the last output; 0.9 at most on the healthy programs
# Standard deviation of the activation, by its range: 0.76 at most, for tanh in 30 layers by Xavier.
_SATURATED = {"tanh": (0.90, 1.0), "sigmoid": (0.80, 2.0)}
_GAIN = 2.0  # root mean square of a layer's output by its input's; 0.6 by torch's default
_DEAD = 0.99  # share of zeros after a ReLU; 0.63 at most on the healthy programs
_REMEDY = "lightning_practices.init.initialize(self)"
_SOURCE = (
    "lectures S1 and S4, weight initialization; Glorot and Bengio, 2010, Understanding the"
    " difficulty of training deep feedforward neural networks"
)


@rule(
    "LP403", "warning",
    practice="Signals keep their scale through the layers",
    measures="variation over samples before and after the last layer, relative to the input's;"
    " gradients of the first layers relative to the last one's",
    healthy="variation by root mean square 0.07 and more, at most 0.9 times the input's, gradients"
    " 0.008 and more",
    source=_SOURCE,
)  # fmt: skip
def signal_vanishes_or_explodes(seen: Observation) -> Iterator[Evidence]:
    step = seen.step
    scale, variation = _input(step)
    last = _last_layer(step)
    signal = None if last is None else _signal(seen, last)
    if last is None or scale == 0 or variation == 0:
        return
    large = last.output.variation or 0.0
    size, varies = (math.nan, math.nan) if signal is None else _measures(signal)
    numbers = {
        "variation": varies / size / variation,
        "gradient": _gradient_ratio(seen, last),
        "output": large / scale,
    }
    deep = last.output.depth
    first = [call for call, _ in step.first_layers]
    modules = tuple(
        dict.fromkeys(one for call in (last, *first) for one in _names(call) if one)
    )[:8]  # fmt: skip
    is_flat = numbers["variation"] < _FLAT or (
        numbers["variation"] < _NEARLY_FLAT and numbers["gradient"] < _GRADIENT
    )
    is_dead = (
        signal is not None and signal.statistics is not None and signal.statistics.zero > _DEAD
    )
    if deep >= _DEEP and not is_dead and (is_flat or varies / min(1.0, scale) < _SMALL):
        yield Evidence(
            f"Over {deep} layers the signal vanishes: at {last} it varies over the samples by"
            f" {varies:.1e} at a root mean square of {size:.1e}, and the input by"
            f" {variation * scale:.1e} at {scale:.1e}; the first layers' gradients are"
            f" {numbers['gradient']:.1e} times the last one's",
            f"{_REMEDY}, or normalisation layers, or residual connections",
            modules,
            numbers,
        )
    elif deep >= _DEEP - 1 and large / max(1.0, scale) > _LARGE:
        yield Evidence(
            f"Over {deep} layers the signal explodes: the output of {last} varies over the samples"
            f" by {large:.1e}, and the input by {variation * scale:.1e}",
            f"{_REMEDY}, or normalisation layers",
            modules,
            numbers,
        )


@rule(
    "LP404", "error",
    practice="ReLUs are alive before the first step",
    measures="share of zeros after ReLUs of layers' outputs, in all of the first steps",
    healthy="0.63 at most",
    source="Lu, Shin, Su and Karniadakis, 2020, Dying ReLU and initialization; TheDeepChecker",
)  # fmt: skip
def relu_is_dead(seen: Observation) -> Iterator[Evidence]:
    for call in _dead(seen, seen.step):
        places = [{(one.module, one.line) for one in _dead(seen, step)} for step in seen.steps[1:]]
        if all((call.module, call.line) in place for place in places):
            maker = call.inputs[0].maker()
            assert maker is not None
            assert call.output.statistics is not None
            zero = call.output.statistics.zero
            yield Evidence(
                f"{zero:.1%} of the outputs of {call} are 0, after {maker}: nearly no gradient"
                " passes it",
                f"{_REMEDY}, with biases of 0",
                tuple(dict.fromkeys(one for one in (*_names(maker), call.module) if one)),
                {"zero": zero},
            )


@rule(
    "LP406", "warning",
    practice="Activations aren't saturated before the first step",
    measures="standard deviation of hidden tanh and sigmoid outputs by their range, where the"
    " layer before has enlarged its input",
    healthy="0.76 at most",
    source=_SOURCE,
)  # fmt: skip
def activation_is_saturated(seen: Observation) -> Iterator[Evidence]:
    paths = Paths(seen.step)
    for call in seen.step.calls:
        found = call.output.statistics if call.outputs else None
        if call.name not in _SATURATED or found is None or id(call) not in paths.reach:
            continue
        limit, factor = _SATURATED[call.name]
        layer = call.inputs[0].maker()
        if factor * found.std < limit or layer is None or layer.name not in LAYERS:
            continue
        before, after = _size(layer.data[0]), _size(layer.output)
        follows = any(one.name in LAYERS and one.parameters for one in paths.after([call.output]))
        if follows and layer.parameters and before > 0 and after / before > _GAIN:
            yield Evidence(
                f"{call} is saturated: the standard deviation of its output is {found.std:.2f}, as"
                f" {layer} enlarges its input {after / before:.1f} times; gradients are nearly 0",
                _REMEDY,
                tuple(dict.fromkeys(one for one in (*_names(layer), call.module) if one)),
                {"std": found.std, "gain": after / before},
            )


def _dead(seen: Observation, step: Step) -> Iterator[Call]:
    paths = Paths(step)
    for call in step.calls:
        found = call.output.statistics if call.outputs else None
        if not rectifies(call) or found is None or not found.zero >= _DEAD:
            continue
        maker = call.inputs[0].maker()
        is_of_layer = maker is not None and maker.name in LAYERS | NORMS and maker.parameters
        if maker is not None and any(
            len(weight.shape) > 1 and weight.statistics.zero == 1.0
            for weight in map(seen.weights.__getitem__, maker.parameters)
        ):
            continue  # the rule on zero weights
        if is_of_layer and call.output.requires_grad and id(call) in paths.reach:
            yield call


def _last_layer(step: Step) -> Call | None:
    """Return the last of the deepest layers whose output isn't 0 everywhere."""
    calls = {id(call): call for root in step.roots for call in root.before()}
    layers = [
        call
        for call in calls.values()
        if call.name in LAYERS and call.parameters and call.output.requires_grad
        and call.output.statistics is not None and call.output.statistics.zero < 1.0
        and call.output.variation is not None
    ]  # fmt: skip
    return max(layers, key=lambda call: (call.output.depth, call.index), default=None)


def _signal(seen: Observation, last: Call) -> Value | None:
    """Return what goes into the last layer; its output, if that wasn't measured.

    Its output isn't told by its variation if a bias begins at the mean of the targets.
    """
    value = last.data[0]
    for one in (value, value.origin()):
        if one.statistics is not None and one.variation is not None:
            return one
    biases = [seen.weights[name] for name in last.parameters if name in seen.weights]
    is_plain = all(
        len(one.shape) > 1 or one.statistics.root_mean_square < 1 for one in biases
    )  # fmt: skip
    return last.output if is_plain else None


def _measures(value: Value) -> tuple[float, float]:
    """Return the root mean square and the variation over samples of a measured value."""
    assert value.statistics is not None
    assert value.variation is not None
    return value.statistics.root_mean_square or math.nan, value.variation


def _input(step: Step) -> tuple[float, float]:
    """Return the root mean square of the first layers' input, and its variation by it."""
    scales, variations = [0.0], [0.0]
    for call, value in step.first_layers:
        x = value.tensor
        if x is not None and x.is_floating_point() and x.dim() > 1 and len(x) > 1:
            size = float(x.double().square().mean().sqrt())
            varies = float(x.double().var(dim=0, correction=0).mean().sqrt())
        else:  # an embedding
            size, varies = _size(call.output), call.output.variation or 0.0
        if math.isfinite(size) and size > 0:
            scales.append(size)
            variations.append(varies / size)
    return max(scales), max(variations)


def _gradient_ratio(seen: Observation, last: Call) -> float:
    """Return the largest gradient of the first layers' weights by that of the last layer's."""

    def largest(calls: list[Call]) -> float:
        found = [0.0]
        for name in (name for call in calls for name in call.parameters):
            gradient = seen.step.gradients.get(name)
            shape = seen.weights[name].shape
            if gradient is not None and len(shape) > 1:
                found.append(gradient.norm / math.prod(shape) ** 0.5)
        return max(found)

    first = [call for call, _ in seen.step.first_layers if call.name in LAYERS]
    end = largest([last])
    start = largest(first)
    is_trained = any(seen.weights[name].is_trainable for call in first for name in call.parameters)
    return start / end if end > 0 and is_trained else 1.0


def _size(value: Value) -> float:
    value = value if value.statistics is not None or value.tensor is not None else value.origin()
    if value.statistics is not None:
        return value.statistics.root_mean_square
    x: Tensor | None = value.tensor
    if x is None or not x.is_floating_point() or not x.numel():
        return 0.0
    return float(x.double().square().mean().sqrt())


def _names(call: Call) -> list[str]:
    """Return the module of a layer's call: that of its parameters, or the one that runs."""
    owners = list(dict.fromkeys(filter(None, map(owner, call.parameters))))
    return owners or [call.module]
