"""The counts and norms of past steps, of one optimizer."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_WINDOW = 1000  # past steps for the automatic threshold


@dataclass
class ClippingState:
    """What is known of one optimizer's gradients; tensors stay on the device, without a wait.

    Attributes:
        steps: The steps taken.
        looked: The steps in which it was found out whether anything was clipped.
        clipped: The number of these steps in which something was clipped.
        norms: The norms of the last steps, that of step ``i`` at ``i % _WINDOW``; nan where the
            norm was not finite. A list until the device is known.
    """

    steps: int = 0
    looked: int = 0
    clipped: Tensor | float = 0.0
    norms: Tensor | list[float] | None = None

    def percentile(self, norm: Tensor, percentile: float) -> Tensor:
        """Remember the norm of this step, and return the percentile of all remembered norms."""
        if not isinstance(self.norms, Tensor):
            known = self.norms or []
            self.norms = norm.new_full((_WINDOW,), math.nan)
            if known:  # from a checkpoint: this copy waits for the device, once
                self.norms[: len(known)] = torch.tensor(known, dtype=norm.dtype)
        self.norms[self.steps % _WINDOW] = torch.where(norm.isfinite(), norm, math.nan)
        return self.norms.nanquantile(percentile / 100)

    def look(self, clipped: Tensor | bool) -> None:
        """Count a step in which something was clipped or not."""
        self.looked += 1
        self.clipped = self.clipped + clipped

    def primitives(self) -> dict[str, Any]:
        """Return the attributes as numbers and a list, for a checkpoint."""
        norms = self.norms
        if isinstance(norms, Tensor):
            norms = norms[: self.steps].tolist()
        clipped = float(self.clipped)
        return {"steps": self.steps, "looked": self.looked, "clipped": clipped, "norms": norms}
