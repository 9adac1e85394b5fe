"""Losses that a constant output minimises, and losses that contradict each other."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of, losses_seen
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._signs import terms_of, unshaped
from lightning_practices.advisor._trace import Call, Loss, Value

_DISTANCES = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})
_SIMILARITIES = frozenset({"cosine_similarity"})
_SQUARES = frozenset({"square", "pow", "abs"})
_FEWEST = 8  # samples of a matrix of similarities


@rule(
    "LP133", "error",
    practice="A loss isn't the least for a constant output",
    measures="losses that only pull outputs of the same parameters together, with gradients on both"
    " sides",
    healthy="a side without gradient, negatives, or another term",
    source="Chen and He, 2021, arXiv:2011.10566: without stop-gradient the outputs collapse",
)  # fmt: skip
def collapse(seen: Observation) -> Iterator[Evidence]:
    for root in seen.step.roots:
        terms = list(terms_of(root))
        pulls = [_pulled(term.value, term.sign) for term in terms if term.value.requires_grad]
        if pulls and all(pull is not None for pull in pulls):
            calls = [pull for pull in pulls if pull is not None]
            yield Evidence(
                f"the loss only pulls two outputs of the same parameters together, by {calls[0]},"
                " and both have gradients: a constant output is its minimum",
                "target.detach() on one side, behind a predictor on the other, as SimSiam has it;"
                " or negatives, or a term for the variance",
                tuple(dict.fromkeys(filter(None, [layer_of(x) for x in calls[0].inputs]))),
            )


def _pulled(value: Value, sign: int) -> Call | None:
    """Return the call that compares two outputs of the same parameters, if it pulls them."""
    call = value.call
    if call is not None and call.name in _SQUARES and call.inputs and sign > 0:
        call = unshaped(call.inputs[0]).call
        is_pulled = call is not None and call.name == "sub"
    else:
        is_pulled = call is not None and (
            (call.name in _DISTANCES and sign > 0) or (call.name in _SIMILARITIES and sign < 0)
        )
    if call is None or not is_pulled or len(call.inputs) != 2:
        return None
    first, second = call.inputs
    if not (first.requires_grad and second.requires_grad and _is_output(first) and
            _is_output(second)):  # fmt: skip
        return None
    shared = set(_parameters(first)) & set(_parameters(second))
    is_same = unshaped(first) is unshaped(second)
    return call if shared and not is_same else None


def _is_output(value: Value) -> bool:
    """Return whether a value is a layer's output, or that divided by its norm."""
    call = value.maker()
    if call is not None and call.name == "normalize":
        call = call.inputs[0].maker()
    return call is not None and call.is_layer


def _parameters(value: Value) -> Iterator[str]:
    for call in value.before():
        yield from call.parameters


@rule(
    "LP246", "error",
    practice="A contrastive loss leaves out the similarity of a sample to itself",
    measures="logits whose diagonal is the greatest of each row, while no target is on it",
    healthy="the diagonal is masked, or it holds the targets",
    source="Chen et al., 2020, arXiv:2002.05709: the sum over k != i",
)  # fmt: skip
def similarity_to_itself(seen: Observation) -> Iterator[Evidence]:
    for _, loss in losses_seen(seen, {"cross_entropy"}):
        x, target = loss.prediction.tensor, loss.target.tensor
        if x is None or target is None or x.dim() != 2 or target.is_floating_point():
            continue
        if len(x) != x.shape[1] or len(x) < _FEWEST or target.shape != (len(x),):
            continue
        places = torch.arange(len(x), device=x.device)
        others = x.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), -torch.inf)
        if bool((x.diagonal() > others.amax(1)).all()) and not bool((target == places).any()):
            yield Evidence(
                f"the logits of {loss.call} are similarities of samples, and hold each sample's to"
                " itself, which is the greatest of its row and no target: the loss can't fall"
                " below it",
                "similarity.fill_diagonal_(float('-inf')) before cross_entropy",
                tuple(filter(None, [layer_of(loss.prediction)])),
            )


@rule(
    "LP247", "error",
    practice="Losses don't contradict each other",
    measures="binary losses in one sum that have equal predictions and opposite constant targets",
    healthy="none; the losses of a generator and its critic are for different optimizers",
    source="Goodfellow et al., 2014, arXiv:1406.2661: the two networks have opposite losses",
)  # fmt: skip
def contradicting_losses(seen: Observation) -> Iterator[Evidence]:
    for root in seen.step.roots:
        calls = {id(call) for call in root.before()}
        losses = [
            (loss, constant)
            for loss in seen.step.losses
            if id(loss.call) in calls and loss.kind in ("bce", "bce_logits", "mse")
            if (constant := _constant(loss.target)) is not None
        ]
        for place, (first, low) in enumerate(losses):
            for second, high in losses[place + 1 :]:
                if abs(high - low) > 0.5 and _are_equal(first, second):
                    yield Evidence(
                        f"{first.call} asks for {low:g} and {second.call} for {high:g} of the same"
                        " predictions, and their sum is minimised: neither can be reached",
                        "an optimizer for each network under manual optimization, and detach() of"
                        " what the critic judges in its own step",
                        tuple(filter(None, [layer_of(first.prediction)])),
                    )
                    return


def _constant(target: Value) -> float | None:
    x = target.tensor
    if x is None or not x.numel() or x.numel() == 1 or target.requires_grad:
        return None
    return float(x.flatten()[0]) if bool((x == x.flatten()[0]).all()) else None


def _are_equal(first: Loss, second: Loss) -> bool:
    a, b = (loss.prediction for loss in (first, second))
    is_asked = a.requires_grad and b.requires_grad
    return is_asked and _same(a.tensor, b.tensor)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and bool(torch.allclose(a, b))
