"""Activations that hinder the layers after them."""

from collections.abc import Iterator

from lightning_practices.advisor._kinds import DROPOUTS, LAYERS, RECTIFIERS
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._paths import before, layers_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call

_DEEP = 3  # sigmoids, one after the other
_WEIGHING = ("att", "gate", "rout", "memory", "key", "expert", "mix", "topic", "assign", "slot")


@rule(
    "LP531", "warning",
    practice="Softmax is for outputs and attention",
    measures="softmax over features between two layers, of inputs of two dimensions",
    healthy="softmax before a product with values, or at the end",
    source="NeuraLint and PyTorch's forum: softmax as activation of hidden layers",
)  # fmt: skip
def softmax_in_hidden_layer(seen: Observation) -> Iterator[Evidence]:
    for layer in layers_of(seen.step):
        line = list(before(layer.data[0], DROPOUTS))
        softmax = line[-1] if line else None
        if softmax is None or softmax.name != "softmax" or len(softmax.output.shape) != 2:
            continue
        first = next(before(softmax.inputs[0]), None)
        dim = softmax.get(1, "dim")
        if first is None or first.name not in LAYERS or dim not in (1, -1):
            continue
        names = f"{softmax.module} {first.module} {layer.module}".lower()
        if layer.name == "linear" and not any(part in names for part in _WEIGHING):
            units = softmax.output.shape[1]
            yield Evidence(
                f"{softmax} is the activation between {first} and {layer}: the {units} units share"
                f" a sum of 1, so each is about {1 / units:.2g}, and gradients vanish",
                "nn.ReLU() in its place",
                (softmax.module,),
                {"units": units},
            )


@rule(
    "LP532", "hint",
    practice="One activation after a layer",
    measures="whether a ReLU takes the result of a ReLU",
    healthy="a layer between two activations",
    source="NeuraLint: redundant activations",
)  # fmt: skip
def relu_twice(seen: Observation) -> Iterator[Evidence]:
    for call in seen.step.calls:
        if call.name in RECTIFIERS and call.inputs:
            line = list(before(call.inputs[0], DROPOUTS))
            if line and (first := line[-1]).name in RECTIFIERS:
                yield Evidence(
                    f"{call} takes the result of {first}: it has no effect",
                    "remove one of them",
                    tuple(dict.fromkeys((first.module, call.module))),
                )


@rule(
    "LP533", "hint",
    practice="Hidden layers have activations that don't saturate",
    measures="sigmoids one after the other, with a layer between them",
    healthy="fewer than 3; sigmoids of gates don't follow each other",
    source="Glorot and Bengio, 2010: Understanding the difficulty of training deep networks",
)  # fmt: skip
def sigmoids_in_hidden_layers(seen: Observation) -> Iterator[Evidence]:
    longest: list[Call] = []
    for call in seen.step.calls:
        if call.name == "sigmoid" and call.inputs:
            line = before(call.inputs[0], LAYERS | DROPOUTS | {"sigmoid"})
            chain = [call, *(one for one in line if one.name == "sigmoid")]
            longest = max(longest, chain, key=len)
    if len(longest) >= _DEEP:
        yield Evidence(
            f"{len(longest)} sigmoids follow each other: each divides gradients by 4 at least",
            "nn.ReLU() in hidden layers",
            tuple(dict.fromkeys(call.module for call in reversed(longest))),
            {"sigmoids": len(longest)},
        )
