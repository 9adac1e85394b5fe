"""Attention over tokens whose order nothing tells."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_practices.advisor._kinds import LAYERS, NORMS
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._small_batches import batch_of, run_again
from lightning_practices.advisor._trace import Call, Value

_SHORTEST = 6  # steps
_ATTENTION = frozenset({"multi_head_attention_forward", "scaled_dot_product_attention", "softmax"})
_DRAWS = 16  # orders that the pairs of neighbours are compared with
_UNLIKELY = 5.0  # standard deviations
_EQUAL = 1e-4  # of the predictions' standard deviation: rounding is below


@rule(
    "LP274", "hint",
    practice="Attention over ordered tokens knows their positions",
    measures="predictions in eval mode of tokens in another order, where neighbours in the data are"
    " no random pairs",
    healthy="they change; sets have no order, and a causal mask tells the order too",
    source="Vaswani et al., 2017, arXiv:1706.03762, section 3.5: positional encoding",
)  # fmt: skip
def no_positions(seen: Observation) -> Iterator[Evidence]:
    if not seen.module.automatic_optimization or seen.failure is not None:
        return
    read = _read(seen.step)
    if read is None or not _is_ordered(read.tokens) or _ignores_order(seen, read) is not True:
        return
    names = [name for name in read.attention.stack if name] or [layer_of(read.attention.output)]
    yield Evidence(
        f"predictions are the same for the tokens of {read.source} in any order, as nothing tells"
        f" {read.attention} their positions, and neighbours in the data aren't random pairs",
        "x = embedding(tokens) + positions[: tokens.shape[1]], with positions ="
        " nn.Parameter(0.02 * torch.randn(longest, width)), unless the tokens are a set",
        tuple(dict.fromkeys(filter(None, names))),
    )


class _Read(NamedTuple):
    """Tokens of a batch that attention reads.

    Attributes:
        source: The entry of the batch.
        tokens: The tokens, of shape (samples, steps).
        attention: The first attention behind them.
    """

    source: str
    tokens: Tensor
    attention: Call


def _read(step: Step) -> _Read | None:
    for call, value in step.first_layers:
        source, x = value.origin().source or "", value.tensor
        is_entry = call.name == "embedding" and source.startswith("batch") and x is not None
        if not is_entry or x is None or x.dim() != 2 or x.shape[1] < _SHORTEST:
            continue
        behind = [
            one
            for loss in step.losses
            for one in loss.prediction.before()
            if one.name in _ATTENTION and any(each is call for each in one.output.before())
        ]
        tells = any(_tells_order(one, x.shape[1]) for loss in step.losses
                    for one in loss.prediction.before())  # fmt: skip
        if behind and not tells and not _are_of_tokens(step, x):
            return _Read(source, x, min(behind, key=lambda one: one.index))
    return None


def _tells_order(call: Call, steps: int) -> bool:
    """Return whether a call gets a table with an entry for each step, such as positions or a mask.

    It may tell the order later in the fit, where it begins at zero. Up to two further entries are
    those of tokens that the model adds.
    """
    inputs = call.inputs
    if call.name == "embedding":
        inputs = inputs[:1]
    elif call.name == "multi_head_attention_forward":
        inputs = [x for x in [call.kwargs.get("attn_mask")] if isinstance(x, Value)]
    elif call.name in LAYERS | NORMS and call.parameters:
        return False
    lengths = {steps, steps + 1, steps + 2}
    return any(not x.is_data and not lengths.isdisjoint(x.shape) for x in inputs)


def _are_of_tokens(step: Step, tokens: Tensor) -> bool:
    """Return whether each step has a target that follows from its own token."""
    for loss in step.losses:
        target = loss.target.tensor
        if target is None or target.numel() != tokens.numel() or target.is_floating_point():
            return False
        pairs = torch.stack([tokens.flatten(), target.reshape(-1)], dim=1)
        pairs = pairs[pairs[:, 1] != int(loss.call.get(4, "ignore_index", -100))]
        if len(torch.unique(pairs, dim=0)) > len(torch.unique(pairs[:, 0])):
            return False
    return True


def _is_ordered(tokens: Tensor) -> bool:
    """Return whether neighbours repeat more often than in random orders, and aren't sorted."""
    inner = tokens[:, 1:-1].cpu()
    sorted_rows = (inner.diff(dim=1) >= 0).all(dim=1) | (inner.diff(dim=1) <= 0).all(dim=1)
    if len(inner) < 2 or bool(sorted_rows.float().mean() > 0.5):
        return False
    draw = torch.Generator().manual_seed(0)
    counts = []
    for _ in range(_DRAWS):
        order = torch.rand(inner.shape, generator=draw).argsort(dim=1)
        counts.append(_pairs(inner.gather(1, order)))
    expected = torch.tensor(counts).double()
    return _pairs(inner) < float(expected.mean() - _UNLIKELY * expected.std().clamp(min=1.0))


def _pairs(tokens: Tensor) -> int:
    """Return the number of different pairs of neighbours."""
    pairs = torch.stack([tokens[:, :-1].flatten(), tokens[:, 1:].flatten()], dim=1)
    return len(torch.unique(pairs, dim=0))


def _ignores_order(seen: Observation, read: _Read) -> bool | None:
    """Return whether the predictions of reordered tokens are the same numbers; ``None`` if unknown.

    The first and the last step, which may have a meaning of their own, stay where they are. So does
    padding, where most sequences end by the same token.
    """
    samples, steps = read.tokens.shape
    end = read.tokens[:, -1].mode().values
    is_end = (read.tokens == end).flip(1).long().cumprod(dim=1).sum(dim=1)
    last = steps - max(1, int(is_end.max()))
    if last - 1 < _SHORTEST - 2:
        return None
    order = torch.arange(steps)
    order[1:last] = order[1:last].roll(1).flip(0)

    def moved(x: Any) -> Any:
        is_beside = isinstance(x, Tensor) and x.shape[:2] == (samples, steps)
        return x[:, order.to(x.device)] if is_beside else x

    first, again, reordered = (
        _numbers(run_again(seen, batch))
        for batch in (batch_of(seen), batch_of(seen), tree_map(moved, batch_of(seen)))
    )
    if first is None or again is None or reordered is None:
        return None
    scale = float(first.std())
    if not torch.equal(first, again) or scale == 0:
        return None
    return _distance(first, reordered) < _EQUAL * scale


def _numbers(step: Step | None) -> Tensor | None:
    """Return the predictions of a step, each sample's in the order of their size."""
    values: list[Value] = [] if step is None else [loss.prediction for loss in step.losses]
    tensors = [x.tensor.flatten() for x in values if x.tensor is not None]
    return torch.cat(tensors).sort().values if tensors else None


def _distance(first: Tensor, second: Tensor) -> float:
    if first.shape != second.shape:
        return float("inf")
    return float((first - second).abs().max())
