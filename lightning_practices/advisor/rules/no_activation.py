"""Layers without an activation between them."""

from collections.abc import Iterator

from lightning_practices.advisor._kinds import DROPOUTS, PASSED, SOFTMAXES
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._paths import before, layers_of, uses_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call

_LINEAR = frozenset(
    {"linear", "addmm", "matmul", "mm"} | {f"conv{n}d" for n in (1, 2, 3)}
)  # of transposed convolutions and embeddings it is usual
_SUMS = frozenset(
    {"add", "sub", "__add__", "__radd__", "__sub__", "__rsub__", "rsub", "cat", "stack", "mean"}
    | {"sum"}
)
_PRODUCTS = frozenset({"mul", "div", "__mul__", "__rmul__", "__truediv__"})  # by numbers
_LAST = SOFTMAXES | {"sigmoid"}


@rule(
    "LP511", "warning",
    practice="A network of several layers has an activation",
    measures="whether all calls between batch and loss are linear, with two layers and more",
    healthy="a function that isn't linear; a linear autoencoder, whose target is its input",
    source="UMLAUT and NeuraLint: missing activations",
)  # fmt: skip
def linear_network(seen: Observation) -> Iterator[Evidence]:
    pairs = list(_pairs(seen))
    for loss in seen.step.losses if pairs else ():
        output = loss.prediction
        while (last := output.maker()) is not None and last.name in _LAST and last.inputs:
            output = last.inputs[0]
        made = list(output.before())
        layers = [call for call in made if call.parameters]
        is_linear = all(call.name in _LINEAR for call in layers) and all(
            _is_linear(call) for call in made
        )
        inside = [pair for pair in pairs if pair[1] in made]
        is_auto = any(x is loss.target.origin() for call in made for x in call.inputs)
        if is_linear and inside and not is_auto and loss.prediction.is_data:
            names = tuple(dict.fromkeys(call.module for pair in inside for call in pair))
            yield Evidence(
                f"{len(layers)} layers and no activation lead to {loss.call}: together they are one"
                " linear layer",
                "nn.ReLU() between the layers",
                names,
            )
            return


@rule(
    "LP512", "hint",
    practice="There is an activation between two layers",
    measures="whether a layer's only input is the result of another layer that nothing else uses",
    healthy="an activation, a norm or a residual connection between them; a narrow middle, as in"
    " LoRA and factorised embeddings; a grouped convolution; frozen layers",
    source="UMLAUT and NeuraLint: missing activations",
)  # fmt: skip
def no_activation(seen: Observation) -> Iterator[Evidence]:
    for first, second in _pairs(seen):
        yield Evidence(
            f"nothing but views and dropout is between {first} and {second}: the two are one linear"
            " layer",
            f"an activation after {first.module or first.line}, or one layer in place of both",
            tuple(dict.fromkeys((first.module, second.module))),
        )


def _pairs(seen: Observation) -> Iterator[tuple[Call, Call]]:
    """Yield layers of which the second takes the result of the first, and nothing else does."""
    uses = uses_of(seen.step)
    for second in layers_of(seen.step):
        if second.name not in _LINEAR or not (widths := _widths(seen, second)):
            continue
        line = list(before(second.data[0], DROPOUTS))
        if not line or line[-1].name not in _LINEAR or not line[-1].parameters:
            continue
        first = line[-1]
        before_it = _widths(seen, first)
        if not before_it or uses[id(first.output)] != 1 or len(first.data) != 1:
            continue
        is_narrow = before_it[1] < min(before_it[0], widths[1])
        if not is_narrow and before_it[1] > 1:
            yield first, second


def _widths(seen: Observation, call: Call) -> tuple[int, int] | None:
    """Return the features that go in and come out of a trainable layer; ``None`` for others."""
    name = call.parameters[0]
    weight = seen.weights.get(name)
    if weight is None or not weight.is_trainable or len(weight.shape) < 2:
        return None
    if call.name.startswith("conv"):
        groups = call.get(6, "groups", 1)
        return None if groups != 1 else (weight.shape[1], weight.shape[0])
    used = next(x for x in call.inputs if x.origin().parameter == name)
    if len(used.shape) < 2:
        return None
    # A product takes the matrix as it is used, which may be a parameter's transpose.
    into, out = used.shape[:2][::-1] if call.name == "linear" else used.shape[-2:]
    return into, out


def _is_linear(call: Call) -> bool:
    """Return whether a call is linear in the data."""
    if call.name in _LINEAR | _PRODUCTS:
        return len(call.data) == 1
    return call.name in PASSED | DROPOUTS | _SUMS
