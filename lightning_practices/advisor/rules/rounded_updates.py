"""Updates that are lost in the rounding of weights of half precision."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Adamax, NAdam

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._schedules import peak_rate

_MOST = 0.95  # of the weights that stay as they are; fine-tuning at 1e-5 has about 0.85 and works
_HALVES = (torch.bfloat16, torch.float16)


@rule(
    "LP673", "warning",
    practice="A step changes most weights, in their precision",
    measures="the share of the weights of half precision to which adding an update at the highest"
    " rate leaves them as they are",
    healthy="under 0.5; weights of float32, as with precision='bf16-mixed'",
    source="Zamirai et al., 2020, Revisiting bfloat16 training, arXiv:2010.06192; reports of"
    " weights that don't move with precision='bf16-true'",
)  # fmt: skip
def rounded_updates(seen: Observation) -> Iterator[Evidence]:
    for optimizer in seen.optimizers:
        kind = type(optimizer)
        if not kind.__module__.startswith("torch.optim") and "Lightning" not in kind.__name__:
            continue  # which may round at random, or keep the rest of an update
        left = total = 0
        rate, names, dtype = 0.0, list[str](), ""
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.dtype not in _HALVES or not p.requires_grad or not p.numel():
                    continue
                size = _size_of_update(seen, optimizer, group, p)
                if not size:
                    continue
                same = _unchanged(p, size)
                left, total = left + same, total + p.numel()
                dtype = str(p.dtype).removeprefix("torch.")
                rate = max(rate, peak_rate(seen, optimizer, group))
                if same > _MOST * p.numel() and id(p) in seen.names:
                    names.append(seen.names[id(p)])
        if total and left > _MOST * total:
            yield Evidence(
                f"{kind.__name__.removeprefix('Lightning')} with lr={rate:g} leaves"
                f" {left / total:.0%} of the weights as they are: an update is less than half of"
                f" the distance to the next number of {dtype}",
                f"Trainer(precision='{'bf16' if dtype == 'bfloat16' else '16'}-mixed'), which keeps"
                " float32 weights",
                tuple(names[:1]),
                {"share": left / total, "lr": rate},
            )


def _size_of_update(
    seen: Observation, optimizer: Any, group: dict[str, Any], p: Tensor
) -> float | None:
    """Return the typical size of an update; ``None`` if unknown."""
    rate = peak_rate(seen, optimizer, group)
    if isinstance(optimizer, Adam | NAdam | Adamax):
        return rate
    if not isinstance(optimizer, SGD):
        return None
    gradients = [step.gradients.get(seen.names.get(id(p), "")) for step in seen.steps]
    norm = max((each.norm for each in gradients if each is not None), default=0.0)
    momentum = min(float(group.get("momentum", 0.0)), 0.99)
    return float(rate * norm / p.numel() ** 0.5 / (1 - momentum))


def _unchanged(p: Tensor, size: float) -> int:
    """Return how many weights neither adding nor subtracting an update changes."""
    weight = p.detach()
    up, down = ((weight.float() + x).to(weight.dtype) for x in (size, -size))
    return int(((up == weight) & (down == weight)).sum())
