"""Logged values by optimizer step."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_practices._metric_names import is_of_validation, is_score
from lightning_practices.callbacks._curves import read_name

_MOST = 256  # values of a name


class Metrics:
    """The logged values by name, in bounded memory: of a long fit every second, fourth and so on.

    Attributes:
        values: Pairs of the optimizer steps taken and the value, by name.
    """

    def __init__(self, values: Mapping[str, Iterable[Any]] | None = None) -> None:
        self.values = {
            name: [(int(step), float(x)) for step, x in pairs]
            for name, pairs in (values or {}).items()
        }

    def add_validation(self, step: int, logged: Mapping[str, Tensor]) -> dict[str, float]:
        """Add all that validation has logged, and return it. The host waits once."""
        return self._add(step, {name: x for name, x in logged.items() if is_of_validation(name)})

    def add_scores(self, step: int, logged: Mapping[str, Tensor]) -> None:
        """Add the scores and rewards of training, by their names. The host waits once."""
        names = [name for name in logged if is_score(name) and not is_of_validation(name)]
        self._add(step, {name: logged[name] for name in names})

    def _add(self, step: int, logged: Mapping[str, Tensor]) -> dict[str, float]:
        parts = {name: x.detach().reshape(-1)[:1].float() for name, x in logged.items()}
        parts = {name: x for name, x in parts.items() if x.numel()}
        if not parts:
            return {}
        first = next(iter(parts.values())).device
        numbers = torch.cat([x.to(first) for x in parts.values()]).tolist()
        found = dict(zip(parts, numbers, strict=True))
        for name, x in found.items():
            series = self.values.setdefault(name, [])
            if math.isfinite(x) and (step, x) not in series[-1:]:
                series.append((step, x))
                if len(series) > _MOST:
                    del series[1::2]
        return found


def validation_loss(logged: Mapping[str, float]) -> float | None:
    """Return the validation loss of an epoch among logged values; ``None`` if there is none."""
    curves = [read_name(name) for name in logged]
    names = [
        one.name
        for one in curves
        if one.split == "val" and one.kind == "loss" and one.fork != "step"
    ]
    return logged["val_loss" if "val_loss" in names else names[0]] if names else None
