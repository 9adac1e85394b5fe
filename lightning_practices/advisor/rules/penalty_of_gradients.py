"""Gradient penalties whose norm isn't that of each sample's gradient."""

import math
from collections.abc import Iterator

from torch.utils._pytree import tree_leaves

from lightning_practices.advisor._kinds import CLAMPS, PASSED
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import batch_size, layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import REGRESSION, Call, Value

_NORMS = frozenset({"norm", "linalg_norm", "linalg_vector_norm"})
_POWERS = frozenset({"pow", "square", "mul", "sum"})
_DIFFERENCES = frozenset({"sub", "rsub", "__rsub__"})


@rule(
    "LP293", "warning",
    practice="A gradient penalty holds the norm of each sample's gradient",
    measures="the number of norms of a gradient by the inputs from which a number is subtracted,"
    " beside the number of samples and of outputs",
    healthy="one norm for each sample, or for each output, such as of a distance field",
    source="Gulrajani et al., 2017, arXiv:1704.00028, algorithm 1; issues of projects that take the"
    " norm over the channels alone",
)  # fmt: skip
def penalty_of_gradients(seen: Observation) -> Iterator[Evidence]:
    lines = set()
    for step in seen.steps:
        for call in step.calls:
            if call.name != "grad":
                continue
            for gradient in call.outputs:
                for norm in _compared(step, gradient):
                    right = _right_numbers(step, call, gradient)
                    count, line = math.prod(norm.shape), norm.call and norm.call.line
                    if not right or count in right or line in lines:
                        continue
                    lines.add(line)
                    yield Evidence(
                        f"a gradient of shape {gradient.shape} has {count} norms of shape"
                        f" {norm.shape}, by {norm.maker()}, that are compared with a number, and"
                        f" not one for each of the {gradient.shape[0]} samples",
                        "gradient.flatten(1).norm(2, dim=1)",
                        tuple(filter(None, [layer_of(_outputs(call)[0])])),
                        {"norms": count, "samples": gradient.shape[0]},
                    )


def _outputs(call: Call) -> list[Value]:
    """Return the values that a call of ``autograd.grad`` differentiates."""
    return [x for x in tree_leaves(call.get(0, "outputs")) if isinstance(x, Value)]


def _right_numbers(step: Step, call: Call, gradient: Value) -> set[int]:
    """Return how many norms a gradient may have; empty if it isn't that of several samples."""
    shape = gradient.shape
    if len(shape) < 2 or shape[0] < 2 or not gradient.is_data:
        return set()
    found = {shape[0], batch_size(step), *(shape[1:2] if len(shape) == 3 else ())}
    for value in _outputs(call):
        origin = value.origin()
        summed = origin.call is not None and origin.call.name in ("sum", "mean")
        numbers = math.prod(origin.call.inputs[0].shape if summed and origin.call else value.shape)
        if numbers == 1:
            return set()  # such as an energy of the whole batch
        found.add(numbers)
    return found


def _compared(step: Step, gradient: Value) -> Iterator[Value]:
    """Yield the norms of a gradient from which a number is subtracted."""
    waiting, seen = [(gradient, False)], set()
    while waiting:
        value, is_norm = waiting.pop()
        for user in step.users(value):
            if id(user) in seen or not user.outputs or id(user) not in step.reach:
                continue
            name, first = user.name, user.inputs[0]
            root = name == "sqrt" or (name == "pow" and user.get(1, "exponent") == 0.5)
            is_plain = all(x is value or _is_constant(x) for x in user.inputs)
            if is_norm and is_plain and _takes_number(step, user, value):
                yield value
            elif name in _NORMS or root:
                waiting.append((user.output, True))
            elif first is value and is_plain and name in PASSED | CLAMPS | _POWERS | {"add"}:
                waiting += [(x, is_norm) for x in user.outputs]
            seen.add(id(user))


def _takes_number(step: Step, user: Call, value: Value) -> bool:
    """Return whether a call measures how far a value is from a positive number."""
    if user.name in _DIFFERENCES:
        numbers = [x for x in user.args if isinstance(x, int | float)]
        return any(x > 0 for x in numbers[:1]) or any(_is_constant(x) for x in user.inputs)
    is_loss = any(one.call is user and one.kind in REGRESSION for one in step.losses)
    return is_loss and any(x is not value and _is_constant(x) for x in user.inputs)


def _is_constant(value: Value) -> bool:
    """Return whether all elements of a value are one positive number that isn't from the data."""
    x, origin = value.tensor, value.origin()
    if x is None or value.requires_grad or not x.numel() or origin.source not in (None, "constant"):
        return False
    if origin.call is not None and any(y.depth for y in origin.call.inputs):
        is_filled = origin.call.name in ("ones_like", "full_like")
        return is_filled and bool((x == x.flatten()[0]).all())
    return bool((x > 0).all()) and bool((x == x.flatten()[0]).all())
