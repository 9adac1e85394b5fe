"""Where a prediction comes from: its activation, its layer, and the values that it can reach."""

import math
from collections.abc import Callable, Collection, Iterator
from typing import TypeGuard

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_practices.advisor._kinds import BOUNDED, CLAMPS, DROPOUTS, PASSED, RECTIFIERS
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._trace import Call, Loss, Value

_LITTLE = 1e-2  # a number that is added against log(0)
_JOINS = frozenset({"cat", "concat", "concatenate", "stack", "hstack", "vstack"})
_CLAMPS = CLAMPS | {"nan_to_num"}
_DIVISIONS = frozenset({"div", "true_divide", "__truediv__"})
_PRODUCTS = frozenset({"mul", "__mul__", "matmul", "mm", "bmm", "mv", "dot", "einsum", "tensordot"})
_SOFTMAXES = frozenset({"softmax", "softmin", "gumbel_softmax", "log_softmax"})
_SUMS_TO_ONE = 1e-3
_HALF_SUMS_TO_ONE = 2e-2  # of float16 and bfloat16


def losses_seen(
    seen: Observation, kinds: Collection[str] | None = None
) -> Iterator[tuple[Step, Loss]]:
    """Yield the losses of some or all kinds in the training steps, each line of code once."""
    found = set()
    for step in seen.steps:
        for loss in step.losses:
            key = loss.call.name, loss.call.line, loss.call.module, layer_of(loss.prediction)
            if (kinds is None or loss.kind in kinds) and key not in found:
                found.add(key)
                yield step, loss


def makers(value: Value) -> list[Call]:
    """Return the calls that made the elements of a value, before changes that keep their meaning.

    These are views, casts, clamps, dropout, small added numbers and joins. The list is
    empty if elements come from outside.
    """
    value = value.origin()
    call = value.call
    if call is None:
        return []
    if call.name in _JOINS:
        found = [makers(x) for x in call.inputs]
        return [each for some in found for each in some] if all(found) else []
    is_alike = call.name in _CLAMPS | DROPOUTS or _adds_little(call)
    if is_alike and makers(call.inputs[0]):
        return makers(call.inputs[0])
    return [call]


def made_by(value: Value, names: Collection[str]) -> Call | None:
    """Return the call that made a value, if all calls that did are among ``names``."""
    found = makers(value)
    return found[0] if found and all(activation(call) in names for call in found) else None


def activation(call: Call) -> str:
    """Return the name of an activation, also of a softmax or sigmoid that is written out."""
    if call.name in _DIVISIONS and len(call.inputs) == 2:
        above, below = call.inputs[0].origin(), call.inputs[1].maker()
        if _is(above.call, "exp") and _is(below, "sum"):
            summed = below.inputs[0].origin()
            is_again = _is(summed.call, "exp") and _argument(summed.call) is _argument(above.call)
            if summed is above or is_again:
                return "softmax"
    if call.name in ("__rdiv__", "reciprocal", "__rtruediv__") and call.inputs:
        below = call.inputs[0].maker()
        if _is(below, "add") and _is(below.inputs[0].maker(), "exp"):
            return "sigmoid"
    return "sigmoid" if call.name == "expit" else call.name


def are_probabilities(value: Value, dimension: int = 1) -> bool:
    """Return whether a value that the recorder kept holds probabilities which sum to 1."""
    x = value.tensor
    if x is None or x.dim() <= dimension or x.shape[dimension] < 2 or not x.is_floating_point():
        return False
    error = _SUMS_TO_ONE if x.dtype in (torch.float32, torch.float64) else _HALF_SUMS_TO_ONE
    sums = x.float().sum(dimension)
    return bool(((sums - 1).abs() < error).all() and (x >= 0).all() and x.numel())


def classes_of(x: Tensor | Value) -> int:
    """Return the number of classes of logits of shape ``(N, C, ...)`` or ``(C,)``."""
    return x.shape[1] if len(x.shape) > 1 else x.shape[0]


def batch_size(step: Step) -> int:
    """Return the number of samples of a step's batch: the first dimension of its first tensor."""
    tensors = [x for x in tree_leaves(step.batch) if isinstance(x, Tensor) and x.dim()]
    return tensors[0].shape[0] if tensors else 0


def softmax_dimension(call: Call) -> int | None:
    """Return the dimension over which a softmax or log-softmax sums to 1."""
    if call.name not in _SOFTMAXES or not call.inputs or not call.inputs[0].shape:
        return None
    count = len(call.inputs[0].shape)
    place = 4 if call.name == "gumbel_softmax" else 1
    dimension = call.get(place, "dim", -1 if place == 4 else None)
    if dimension is None:  # as torch chooses it
        dimension = 0 if count == 3 else 1
    return int(dimension) % count


def weights_others(step: Step, value: Value) -> bool:
    """Return whether a value multiplies others with a gradient, as attention does."""
    for call in step.users(value):
        if call.name in PASSED | DROPOUTS | _CLAMPS | _DIVISIONS | {"masked_fill", "where"}:
            if any(weights_others(step, x) for x in call.outputs):
                return True
        elif call.name in _PRODUCTS and any(
            x is not value and x.requires_grad for x in call.inputs
        ):
            return True
    return False


def layer_of(value: Value) -> str:
    """Return the name of the module of the nearest layer with parameters before a value."""
    layer = next((call for call in value.before() if call.is_layer), None)
    if layer is None:
        return ""
    return layer.module or layer.parameters[0].rpartition(".")[0] or layer.parameters[0]


def places(seen: Observation, call: Call) -> tuple[str, ...]:
    """Return the modules to name for a call: its own, and its layer's if its own is larger."""
    found = [call.module] if call.module else []
    own = seen.modules.get(call.module)
    if not found or own is None or any(True for _ in own.children()):
        found += [name for name in [layer_of(call.output)] if name and name not in found]
    return tuple(found)


def reach(value: Value) -> tuple[float, float]:
    """Return the least and the greatest value that a prediction can take by its last functions.

    Numbers by which an activation is scaled or shifted count.
    """
    value = value.origin()
    call = value.call
    if call is None:
        return -math.inf, math.inf
    if call.name in _JOINS:
        lows, highs = zip(*map(reach, call.inputs), strict=True)
        return min(lows), max(highs)
    if call.name == "hardtanh":
        return float(call.get(1, "min_val", -1.0)), float(call.get(2, "max_val", 1.0))
    if call.name == "threshold":
        return min(float(call.get(1, "threshold")), float(call.get(2, "value"))), math.inf
    if call.name in _CLAMPS and len(call.inputs) == 1:
        return _clamped(call)
    name = activation(call)
    return _REACH[name] if name in _REACH else _scaled(call)


def rectifies(call: Call) -> bool:
    """Return whether a call is a ReLU, by its name or as a clamp from 0 on."""
    if call.name not in CLAMPS:
        return call.name in RECTIFIERS
    return len(call.inputs) == 1 and _ends(call) == (0, None)


_ABOVE_ZERO = dict.fromkeys(("relu", "softplus", "exp", "abs", "square"), (0.0, math.inf))
_REACH = {
    **BOUNDED, **_ABOVE_ZERO, "relu6": (0.0, 6.0), "softmin": (0.0, 1.0),
    "log_softmax": (-math.inf, 0.0), "log_sigmoid": (-math.inf, 0.0),
    "logsigmoid": (-math.inf, 0.0),
}  # fmt: skip


def _clamped(call: Call) -> tuple[float, float]:
    low, high = reach(call.inputs[0])
    if call.name == "nan_to_num":
        return low, high
    least, most = _ends(call)
    return max(low, -math.inf if least is None else least), min(
        high, math.inf if most is None else most
    )


def _ends(call: Call) -> tuple[float | None, float | None]:
    """Return the numbers between which a clamp keeps its input."""
    given = {"clamp_min": (call.get(1, "min"), None), "clamp_max": (None, call.get(1, "max"))}
    return given.get(call.name, (call.get(1, "min"), call.get(2, "max")))


def _scaled(call: Call) -> tuple[float, float]:
    """Return what the result of arithmetic with one number can reach."""
    numbers = [x for x in call.args if isinstance(x, int | float)]
    if len(call.inputs) != 1 or call.kwargs or len(call.args) > 2:
        return -math.inf, math.inf
    number = float(numbers[0]) if numbers else 0.0
    changes: dict[str, Callable[[float], float]] = {
        "add": lambda x: x + number, "sub": lambda x: x - number, "neg": lambda x: -x,
        "__rsub__": lambda x: number - x, "rsub": lambda x: number - x,
        "mul": lambda x: x * number if number else 0.0,
        "div": lambda x: x / number if number else math.inf,
    }  # fmt: skip
    changed = changes.get(call.name)
    if changed is None or (call.name != "neg" and not numbers):
        return -math.inf, math.inf
    ends = sorted(changed(x) for x in reach(call.inputs[0]))
    return ends[0], ends[1]


def _adds_little(call: Call) -> bool:
    other = call.get(1, "other")
    return (
        call.name in ("add", "sub")
        and len(call.inputs) == 1
        and isinstance(other, int | float)
        and abs(other) <= _LITTLE
    )


def _argument(call: Call) -> Value:
    return call.inputs[0].origin()


def _is(call: Call | None, name: str) -> TypeGuard[Call]:
    return call is not None and call.name == name and bool(call.inputs)
