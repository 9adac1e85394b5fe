"""Batch norm after a bias, or at the end."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._paths import before, is_external, uses_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call

_LAYERS = frozenset(
    {"linear", "addmm"} | {f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)}
)


@rule(
    "LP521", "hint",
    practice="A layer before a batch norm has no bias",
    measures="whether the result of a layer with a bias goes to a batch norm alone",
    healthy="bias=False",
    source="Ioffe and Szegedy, 2015, arXiv:1502.03167, section 3.2",
)  # fmt: skip
def bias_before_batch_norm(seen: Observation) -> Iterator[Evidence]:
    uses = uses_of(seen.step)
    found: list[Call] = []
    for call in seen.step.calls:
        if call.name == "batch_norm" and seen.step.modes.get(call.module, True) and call.inputs:
            layer = next(before(call.inputs[0]), None)
            if (
                layer is not None
                and layer.name in _LAYERS
                and any(len(seen.weights[p].shape) == 1 for p in layer.parameters)
                and uses[id(layer.output)] == 1
                and layer not in found
            ):
                found.append(layer)
    if found:
        yield Evidence(
            f"the biases of {len(found)} layers have no effect: the batch norm after each of them"
            " subtracts the mean",
            "bias=False",
            tuple(dict.fromkeys(call.module for call in found)),
            {"layers": len(found)},
        )


@rule(
    "LP522", "hint",
    practice="The output isn't normalised over the batch",
    measures="whether a batch norm makes the prediction of a loss",
    healthy="a linear layer at the end",
    source="Ioffe and Szegedy, 2015, arXiv:1502.03167",
)  # fmt: skip
def batch_norm_on_output(seen: Observation) -> Iterator[Evidence]:
    for loss in seen.step.losses:
        maker = loss.prediction.maker()
        if maker is not None and maker.name == "batch_norm" and is_external(loss.target):
            yield Evidence(
                f"{maker} makes the output of which {loss.call} is taken: an output depends on the"
                " other samples of its batch",
                "remove it",
                (maker.module,),
            )
