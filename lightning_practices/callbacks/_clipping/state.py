"""The counts and norms of one optimizer's past steps."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_WINDOW = 1000  # past norms for the automatic threshold


@dataclass
class ClippingState:
    """Statistics of one optimizer's gradients; tensors stay on the device, so nothing waits.

    Attributes:
        steps: The number of optimizer steps taken.
        looked: The number of steps at which it was recorded whether gradients were clipped.
        clipped: The number of these steps at which gradients were clipped.
        norms: The norms of the last ``_WINDOW`` steps. The norm of step ``i`` is at index ``i %
            _WINDOW``; norms that aren't finite are stored as nan. A list if loaded from a
            checkpoint, until the device is known.
    """

    steps: int = 0
    looked: int = 0
    clipped: Tensor | float = 0.0
    norms: Tensor | list[float] | None = None

    def percentile(self, norm: Tensor, percentile: float) -> Tensor:
        """Store the norm of this step, and return the percentile of all stored norms."""
        if not isinstance(self.norms, Tensor):
            known = self.norms or []
            self.norms = norm.new_full((_WINDOW,), math.nan)
            if known:  # from a checkpoint: this copy waits for the device, once
                self.norms[: len(known)] = torch.tensor(known, dtype=norm.dtype)
        self.norms[self.steps % _WINDOW] = torch.where(norm.isfinite(), norm, math.nan)
        return self.norms.nanquantile(percentile / 100)

    def look(self, clipped: Tensor | bool) -> None:
        """Count a step, and whether its gradients were clipped."""
        self.looked += 1
        self.clipped = self.clipped + clipped

    def primitives(self) -> dict[str, Any]:
        """Return the attributes as numbers and a list, for a checkpoint."""
        norms = self.norms
        if isinstance(norms, Tensor):
            norms = norms[: self.steps].tolist()
        clipped = float(self.clipped)
        return {"steps": self.steps, "looked": self.looked, "clipped": clipped, "norms": norms}
