"""Losses of quantiles that learn the opposite ones."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_practices.advisor._divergences import is_error
from lightning_practices.advisor._kept_graphs import tensors_held
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._slopes import Slopes
from lightning_practices.advisor._small_batches import batch_of, run_again
from lightning_practices.advisor._trace import Call, Value

_CLOSE, _APART = 0.02, 0.1
_MOST = 32  # quantiles


@rule(
    "LP284", "error",
    practice="Each head learns the quantile that is written for it",
    measures="the slopes of the loss far above and far below each target, which tell the quantile"
    " that a head learns, beside the constants of the heads",
    healthy="equal: a prediction below its target costs q, one above costs 1 - q",
    source="Koenker and Bassett, 1978, Regression quantiles; reports of pinball losses with the"
    " prediction and the target exchanged",
)  # fmt: skip
def reversed_quantiles(seen: Observation) -> Iterator[Evidence]:
    if not seen.module.automatic_optimization or seen.failure is not None:
        return
    written = _written(seen)
    counts = {len(quantiles) for quantiles in written} | _constants(seen.step)
    if not any(counts & set(heads.shape[1:]) for heads, _ in _heads(seen.step)):
        return
    step = run_again(seen, batch_of(seen))
    if step is None:
        return
    for heads, maker in _heads(step):
        slopes = Slopes(seen, step, maker)
        above, below = slopes.at(1), slopes.at(-1)
        known = written or [found for x in slopes.constants if (found := _quantiles(x))][:1]
        for quantiles in known:
            learnt = _learnt(above, below, len(quantiles))
            if learnt is None:
                continue
            wanted = torch.tensor(quantiles)
            is_reversed = bool(((learnt - (1 - wanted)).abs() < _CLOSE).all())
            if is_reversed and bool(((learnt - wanted).abs() > _APART).any()):
                yield Evidence(
                    f"the heads of {maker} are for the quantiles"
                    f" {', '.join(f'{q:g}' for q in quantiles)}, and the slopes of the loss are"
                    f" those of {', '.join(f'{q:.2g}' for q in learnt.tolist())}: a prediction"
                    " that is too low costs what one that is too high should",
                    "error = y - prediction; loss = torch.maximum(q * error, (q - 1) * error)",
                    tuple(filter(None, [layer_of(heads)])),
                )
                return


def _heads(step: Step) -> Iterator[tuple[Value, Call]]:
    """Yield outputs of several heads whose errors are in the loss, each with its call."""
    found = set()
    for call in step.after_layers:
        if not is_error(call):
            continue
        heads = max(call.inputs, key=lambda value: value.requires_grad).origin()
        is_several = len(heads.shape) > 1 and max(heads.shape[1:]) > 1
        if heads.call is not None and is_several and id(heads) not in found:
            found.add(id(heads))
            yield heads, heads.call


def _constants(step: Step) -> set[int]:
    """Return the numbers of elements of small tensors, neither data nor trained, in the loss."""
    values = (x for call in step.after_layers for x in call.inputs)
    plain = (x for x in values if not x.is_data and not x.requires_grad)
    return {size for x in plain if 1 < (size := math.prod(x.shape)) <= _MOST}


def _learnt(above: Tensor | None, below: Tensor | None, count: int) -> Tensor | None:
    """Return the quantile that each head learns; ``None`` if it learns none."""
    if above is None or below is None:
        return None
    dimension = next((i for i in range(above.dim() - 1, 0, -1) if above.shape[i] == count), None)
    if dimension is None:
        return None
    up, down = (x.movedim(dimension, 0).reshape(count, -1).sum(dim=1) for x in (above, -below))
    return down / (up + down) if bool(((up > 0) & (down > 0)).all()) else None


def _written(seen: Observation) -> list[tuple[float, ...]]:
    """Return the quantiles that attributes of the modules hold."""
    found = [x for _, x in tensors_held(seen.module)]
    values: list[Any] = [*found, *dict(seen.module.hparams).values()]
    values += [x for part in seen.module.modules() for x in vars(part).values()]
    kept = [quantiles for x in values if (quantiles := _quantiles(x))]
    return list(dict.fromkeys(kept))


def _quantiles(x: Any) -> tuple[float, ...]:
    """Return the numbers of a list or a tensor that may be quantiles; empty for others."""
    if isinstance(x, Tensor):
        is_short = x.is_floating_point() and 1 < x.numel() <= _MOST
        x = x.detach().reshape(-1).tolist() if is_short else []
    if not isinstance(x, list | tuple) or not 1 < len(x) <= _MOST:
        return ()
    numbers = [one for one in x if isinstance(one, float) and 0 < one < 1]
    is_ordered = numbers in (sorted(set(numbers)), sorted(set(numbers), reverse=True))
    return tuple(numbers) if len(numbers) == len(x) and is_ordered else ()
