"""Last layers that are frozen as they were initialised."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_practices.advisor._observation import Observation, Weight
from lightning_practices.advisor._outputs import losses_seen
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call

_FEWEST = 64  # elements of a weight
_NEAR = 0.05
_SAME = 1e-3  # differences between the norms of rows
_ERRORS = 4.0  # standard errors
_LARGEST = 1.1  # singular value, by that of as many independent draws


@rule(
    "LP145", "warning",
    practice="A new last layer is trained",
    measures="frozen last layers whose weights are independent draws and whose biases are those of"
    " an initialisation, and the number of elements that are trained",
    healthy="trained ones, or frozen ones whose values come from a training",
    source="questions on forums about fine-tuning in which the head is frozen with the rest",
)  # fmt: skip
def new_head_is_frozen(seen: Observation) -> Iterator[Evidence]:
    for call, outputs, trained in _frozen_heads(seen):
        if trained <= outputs:
            yield _evidence(
                call,
                f"no more than {trained} elements are trained beside it: nothing can be learnt",
            )


@rule(
    "LP146", "hint",
    practice="A new last layer is trained",
    measures="as LP145, where more is trained than the layer has outputs",
    healthy="trained ones; fixed classifiers on purpose",
    source="Hoffer et al., 2018, arXiv:1801.04540: fixed classifiers, which train too",
)  # fmt: skip
def new_head_is_frozen_beside_others(seen: Observation) -> Iterator[Evidence]:
    for call, outputs, trained in _frozen_heads(seen):
        if trained > outputs:
            yield _evidence(call, "the layers before have to learn for random weights")


def _evidence(call: Call, effect: str) -> Evidence:
    return Evidence(
        f"{call} is the last layer, its weights are as initialised, and it is frozen; {effect}",
        "requires_grad_(True) for the new layer, after the rest is frozen",
        tuple(filter(None, [call.module])),
    )


def _frozen_heads(seen: Observation) -> Iterator[tuple[Call, int, int]]:
    """Yield frozen last layers that are new, with their outputs and the elements trained."""
    trained = sum(math.prod(one.shape) for one in seen.weights.values() if one.is_trainable)
    if not trained:
        return  # another rule's
    for _, loss in losses_seen(seen):
        layer = next((call for call in loss.prediction.before() if call.is_layer), None)
        if layer is None or not loss.target.is_data or loss.target.requires_grad:
            continue
        weights = [seen.weights[name] for name in layer.parameters if name in seen.weights]
        named = {seen.names.get(id(p)): p for p in seen.module.parameters()}
        held = named.get(layer.parameters[0]) if weights else None
        if layer.name == "linear" and held is not None and _are_new(weights, held):
            yield layer, weights[0].shape[0], trained


def _are_new(weights: list[Weight], held: Tensor) -> bool:
    """Return whether a frozen layer's values are those of an initialisation.

    Both are uniform up to 1 / sqrt(inputs), as torch draws them, or the weights are other
    independent draws and the bias is 0.
    """
    weight, *biases = weights
    if any(one.is_trainable for one in weights) or len(weight.shape) != 2:
        return False
    if math.prod(weight.shape) < _FEWEST or weight.statistics.std == 0:
        return False
    bound = 1 / math.sqrt(weight.shape[1])
    values = weight.statistics
    is_within = all(max(-x.statistics.low, x.statistics.high) <= bound * 1.0001 for x in weights)
    is_uniform = (
        is_within
        and min(-values.low, values.high) > bound * (1 - _NEAR)
        and abs(values.std * math.sqrt(3) / bound - 1) < _NEAR
    )
    is_zero = bool(biases) and all(one.statistics.zero == 1 for one in biases)
    return is_uniform or (is_zero and _are_draws(held.detach()))


def _are_draws(weight: Tensor) -> bool:
    """Return whether the elements of a matrix may be independent draws around 0.

    Rows that are embeddings or class means point to a common side, or have the same norm.
    """
    x = weight.double().cpu()
    x = x / x.std()
    outputs, inputs = x.shape
    norms = x.norm(dim=1)
    are_spread = float(norms.std() / norms.mean()) > _SAME if outputs > 1 else True
    flatness = float((x - x.mean()).pow(4).mean())  # 1.8 if uniform, 3 if normal
    error = _ERRORS * math.sqrt(24 / x.numel())
    is_centred = abs(float(x.mean())) < _ERRORS / math.sqrt(x.numel())
    largest = float(torch.linalg.matrix_norm(x, 2))
    is_even = largest < _LARGEST * (math.sqrt(outputs) + math.sqrt(inputs))
    return are_spread and is_centred and is_even and 1.8 - error < flatness < 3 + error
