"""Metric losses that move samples of one class apart."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from lightning_practices.advisor._kinds import LAYERS
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import places
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._samples import entry_of
from lightning_practices.advisor._small_batches import run_again
from lightning_practices.advisor._trace import Value

_COMPARISONS = frozenset({"eq", "ne", "__eq__", "__ne__", "not_equal"})
_ALIGNED = 0.05  # cosine between a step down the loss and the change of the distances


@rule(
    "LP270", "error",
    practice="A metric loss moves samples of one class together",
    measures="the change of the distances within classes, by those between classes, by a step down"
    " the loss, where nothing but the loss follows the embeddings and it compares labels",
    healthy="the ratio falls",
    source="Schroff et al., 2015, arXiv:1503.03832: anchor, positive, negative; Hadsell et al.,"
    " 2006: which label is that of a similar pair",
)  # fmt: skip
def metric_loss_turned_round(seen: Observation) -> Iterator[Evidence]:
    source = _compared(seen.step)
    embedding = _only_embedding(seen.step)
    if source is None or embedding is None or not seen.module.automatic_optimization:
        return
    labels = entry_of(seen.step.batch, source)
    if not isinstance(labels, Tensor) or embedding.shape[:1] != labels.shape:
        return
    watch = _Outputs(embedding.shape)
    steps: list[float] = []

    def after(loss: Tensor) -> None:
        if watch.last is not None and loss.requires_grad and not loss.dim():
            (gradient,) = torch.autograd.grad(loss, watch.last, allow_unused=True)
            if gradient is not None:
                steps.extend(_changes(watch.last.detach(), -gradient, labels))

    run_again(seen, seen.step.batch, watch, after)
    if steps and min(steps) > _ALIGNED:
        call = embedding.maker()
        yield Evidence(
            "a step down the loss moves the embeddings of samples with equal labels apart, compared"
            f" with those of different labels (cosine {steps[0]:.2f} with the growth of the ratio"
            " of their distances): the loss is turned round",
            "exchange positives and negatives: triplet_margin_loss(anchor, positive, negative);"
            " pairs with equal labels are pulled together",
            () if call is None else places(seen, call),
            {"cosine": steps[0]},
        )


def _compared(step: Step) -> str | None:
    """Return the entry of the batch whose elements a loss compares with each other, or ``None``."""
    for call in [call for root in step.roots for call in root.before()]:
        if call.name in _COMPARISONS and len(call.inputs) == 2:
            sources = {x.origin().source for x in call.inputs}
            if len(sources) == 1 and (source := sources.pop()) and source.startswith("batch"):
                return source
    return None


def _only_embedding(step: Step) -> Value | None:
    """Return the output of the only last layer, if the loss depends on no other layer's."""
    if len(step.roots) != 1:
        return None
    after = step.after_layers
    inner = {id(x) for call in after for x in call.outputs}
    ends = {
        id(x): x
        for call in after
        for x in call.inputs
        if x.requires_grad and id(x) not in inner
    }  # fmt: skip
    if len(ends) != 1:
        return None
    (embedding,) = ends.values()
    is_layer = embedding.call is not None and embedding.call.is_layer
    return embedding if is_layer and len(embedding.shape) == 2 else None


class _Outputs(TorchFunctionMode):
    """Keeps the last output of a layer that has a shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.last: Tensor | None = None

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in LAYERS and isinstance(result, Tensor):
            holds = any(isinstance(x, nn.Parameter) for x in tree_leaves((args, kwargs)))
            if holds and result.requires_grad and tuple(result.shape) == self.shape:
                self.last = result
        return result


def _changes(z: Tensor, step: Tensor, labels: Tensor) -> Iterator[float]:
    """Yield the cosine of a step and the growth of distances within classes, by those between.

    First for the embeddings as they are, then for those of unit norm.
    """
    same = labels[:, None] == labels
    within = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    if not within.any() or same.all():
        return
    for normed in (False, True):
        with torch.enable_grad():
            x = z.clone().requires_grad_()
            y = functional.normalize(x, dim=1) if normed else x
            squares = (y[:, None] - y).square().sum(-1)
            ratio = squares[within].mean().log() - squares[~same].mean().log()
            (grown,) = torch.autograd.grad(ratio, x)
        yield float(functional.cosine_similarity(grown.flatten(), step.flatten(), dim=0))
