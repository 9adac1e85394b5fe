"""Numbers on a device, read at once."""

import itertools

import torch
from torch import Tensor

from lightning_practices.callbacks._trainer.sharding import local


class Readings:
    """Collects tensors, and reads all of them in one copy for each device."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def add(self, x: Tensor) -> int:
        """Add a tensor, and return its place among the numbers that :meth:`read` returns."""
        self._tensors.append(local(x.detach()).reshape(-1).float())
        return len(self._tensors) - 1

    def read(self) -> list[list[float]]:
        """Return the elements of each tensor, and forget the tensors. The host waits."""
        tensors, self._tensors = self._tensors, []
        found: list[list[float]] = [[] for _ in tensors]
        for device in {x.device for x in tensors}:
            places = [i for i, x in enumerate(tensors) if x.device == device]
            sizes = [tensors[i].numel() for i in places]
            values = torch.cat([tensors[i] for i in places]).tolist()
            ends = itertools.accumulate(sizes)
            for place, size, end in zip(places, sizes, ends, strict=True):
                found[place] = values[end - size : end]
        return found
