"""A standard deviation in one place and a variance in another."""

from collections.abc import Iterator
from typing import NamedTuple

from torch.utils._pytree import tree_leaves

from lightning_practices.advisor._kinds import CASTS, CLAMPS, PASSED
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Value

_SPLITS = frozenset({"chunk", "split", "unbind", "tensor_split", "__getitem__", "select", "narrow"})
_DRAWN = frozenset({"randn", "randn_like"})
_EXPONENT_OF_MEAN = 0.5  # exp(mean + variance / 2) is the mean of a lognormal distribution


class _Use(NamedTuple):
    mean: int
    spread: int
    role: str
    call: Call
    value: Value


class _Keys:
    """Numbers for values: equal ones for what is computed in the same way from the same layers."""

    def __init__(self) -> None:
        self._numbers: dict[object, int] = {}
        self._known: dict[int, int] = {}
        self._kept: list[Value] = []  # whose ``id`` is not to be reused

    def of(self, value: Value) -> int:
        """Return the number of a value."""
        if id(value) not in self._known:
            self._kept.append(value)
            self._known[id(value)] = self._number(self._described(value))
        return self._known[id(value)]

    def _number(self, description: object) -> int:
        return self._numbers.setdefault(description, len(self._numbers))

    def _described(self, value: Value) -> object:
        value = _unshaped(value)
        call = value.call
        if call is None or not call.inputs:
            return value.source if call is None else call.name
        place = next((i for i, x in enumerate(call.outputs) if x is value), 0)
        if call.parameters:
            return call.name, place, *call.parameters
        numbers = [x for x in tree_leaves((call.args, call.kwargs)) if not isinstance(x, Value)]
        return call.name, place, repr(numbers), *map(self.of, call.inputs)


@rule(
    "LP526", "warning",
    practice="A predicted spread is either a standard deviation or a variance everywhere",
    measures="the role of what is computed from the same layers beside the same mean: variance in"
    " gaussian_nll_loss and in squared differences that it divides, deviation in samples,"
    " intervals and torch.distributions.Normal",
    healthy="one role, with a square or a root between the two",
    source="torch.nn.GaussianNLLLoss takes the variance, torch.distributions.Normal the standard"
    " deviation; reports of forecasts whose intervals are wrong",
    explained_by=("LP245",),
)  # fmt: skip
def deviation_as_variance(seen: Observation) -> Iterator[Evidence]:
    keys = _Keys()
    uses = [
        use
        for step in (*seen.steps[:1], seen.validation_step)
        if step is not None
        for use in _uses(step, keys)
    ]
    trained = {id(call) for call in seen.step.calls if id(call) in seen.step.reach}
    for use in uses:
        if id(use.call) not in trained or not use.value.requires_grad:
            continue
        same = [one for one in uses if one[:2] == use[:2]]
        others = [one for one in same if one.role != use.role]
        if not others:
            continue
        one = others[0]
        place = layer_of(use.value)
        yield Evidence(
            f"{use.call} takes the spread for a {use.role}, and {one.call} takes the same for a"
            f" {one.role}: its samples or intervals are wrong",
            "F.gaussian_nll_loss(mean, y, std**2), or Normal(mean, variance.sqrt())",
            (place,) if place else (),
        )
        return


def _uses(step: Step, keys: _Keys) -> Iterator[_Use]:
    """Yield the uses of spreads in a step, those of squares as uses of what is squared."""
    for call in step.calls:
        for mean, spread, role in _roles(step, call):
            yield _Use(keys.of(mean), keys.of(spread), role, call, spread)
            if role == "variance" and (base := _squared(spread)) is not None:
                yield _Use(keys.of(mean), keys.of(base), "standard deviation", call, base)
            if role == "standard deviation" and (base := _rooted(spread)) is not None:
                yield _Use(keys.of(mean), keys.of(base), "variance", call, base)


def _roles(step: Step, call: Call) -> Iterator[tuple[Value, Value, str]]:
    """Yield means and spreads that a call combines, with the spread's role."""
    if call.name == "gaussian_nll_loss":
        mean, variance = call.get(0, "input"), call.get(2, "var")
        if isinstance(mean, Value) and isinstance(variance, Value):
            yield mean, variance, "variance"
    elif call.name == "normal":
        mean, deviation = call.get(0, "mean"), call.get(1, "std")
        if isinstance(mean, Value) and isinstance(deviation, Value):
            yield mean, deviation, "standard deviation"
    elif call.name == "div" and len(call.args) == len(call.inputs) == 2:
        # (y - mean)**2 / (2 * variance), as in Normal.log_prob with the deviation's square.
        square = _squared(_unscaled(call.inputs[0]))
        difference = None if square is None else _unshaped(square).call
        if difference is not None and difference.name == "sub":
            for mean in difference.inputs:
                yield mean, _unscaled(call.inputs[1]), "variance"
    elif call.name in ("add", "sub") and len(call.inputs) == 2:
        for mean, offset in (call.inputs, call.inputs[::-1]):
            scaled = _unscaled(offset)
            is_data = mean.is_data and mean.depth and scaled.is_data and scaled.depth
            if is_data and scaled is not _unshaped(offset) and not _is_of_mean(step, call, offset):
                yield mean, scaled, "standard deviation"


def _unscaled(value: Value) -> Value:
    """Return a value before its sign, and before factors that are numbers or noise."""
    while True:
        value = _unshaped(value)
        call = value.call
        if call is None or call.name not in ("mul", "div", "neg") or not call.inputs:
            return value
        spreads = [x for x in call.inputs if not _is_factor(x)]
        if len(spreads) != 1 or (call.name == "div" and call.inputs[0] is not spreads[0]):
            return value
        value = spreads[0]


def _is_factor(value: Value) -> bool:
    maker = value.maker()
    is_drawn = maker is not None and maker.name in _DRAWN
    return is_drawn or not (value.is_data or value.requires_grad)


def _unshaped(value: Value) -> Value:
    """Return a value before casts, clamps and changes of its shape."""
    while (call := value.call) is not None and call.inputs:
        if call.name == "broadcast_tensors":
            value = call.inputs[next(i for i, x in enumerate(call.outputs) if x is value)]
        elif call.name in (PASSED | CASTS | CLAMPS | {"detach"}) - _SPLITS:
            value = call.inputs[0]
        else:
            break
    return value


def _squared(value: Value) -> Value | None:
    """Return the value of which another one is the square."""
    call = _unshaped(value).call
    if call is None or not call.inputs:
        return None
    if call.name == "mul" and len(call.inputs) == 2 and call.inputs[0] is call.inputs[1]:
        return call.inputs[0]
    is_square = call.name == "square" or (call.name == "pow" and call.get(1, "exponent") == 2)
    return call.inputs[0] if is_square else None


def _rooted(value: Value) -> Value | None:
    """Return the value of which another one is the square root."""
    call = _unshaped(value).call
    if call is None or not call.inputs:
        return None
    is_root = call.name == "sqrt" or (call.name == "pow" and call.get(1, "exponent") == 0.5)
    return call.inputs[0] if is_root else None


def _is_of_mean(step: Step, call: Call, offset: Value) -> bool:
    """Whether a sum may be mean + variance / 2, the logarithm of a lognormal's mean."""
    scale = _unshaped(offset).call
    numbers = [] if scale is None else [x for x in scale.args if isinstance(x, int | float)]
    is_half = scale is not None and (
        (scale.name == "mul" and numbers == [_EXPONENT_OF_MEAN])
        or (scale.name == "div" and numbers == [2])
    )
    return is_half or any(user.name in ("exp", "expm1") for user in step.users(call.output))
