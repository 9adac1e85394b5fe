"""Metrics that hold samples of training when a validation adds its own."""

import inspect

from torch import nn
from torchmetrics import Metric

_OF_BOTH = "real"  # argument of metrics that compare two sets of samples, such as FID


class MetricStates:
    """How often the metrics of a module had been updated when its first validation step began."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def begin(self, module: nn.Module) -> None:
        """Note the updates so far."""
        self._counts = {name: one._update_count for name, one in _metrics(module).items()}

    def continued(self, module: nn.Module) -> tuple[str, ...]:
        """Return the names of the metrics that were not empty then, and have got more samples."""
        return tuple(
            name
            for name, one in _metrics(module).items()
            if 0 < self._counts.get(name, 0) < one._update_count
        )


def _metrics(module: nn.Module) -> dict[str, Metric]:
    return {
        name: one
        for name, one in module.named_modules()
        if isinstance(one, Metric) and _OF_BOTH not in inspect.signature(one.update).parameters
    }
