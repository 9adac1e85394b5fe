"""Parameters that were unfrozen during the fit, and that no optimizer has."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_practices._names import plain_name
from lightning_practices.callbacks._training_advisor.weights import dense, sample

_MOST = 16  # parameters whose elements are compared


class Unowned:
    """Looks for parameters that get gradients now and didn't when the fit began.

    They count if no optimizer of the Trainer has them and nothing else changes them.

    Args:
        module: The module of the fit, before its first step.

    Attributes:
        looks: The number of looks in a row in which each parameter stayed as it was, by name.
    """

    def __init__(self, module: LightningModule) -> None:
        self._trained = {id(p) for p in module.parameters() if p.requires_grad}
        self._before: dict[str, Tensor] = {}
        self._now: dict[str, Tensor] = {}
        self.looks: dict[str, int] = {}

    def note(self, trainer: Trainer, module: LightningModule) -> None:
        """Keep elements of such parameters, before an optimizer steps."""
        new = [
            (name, p)
            for name, p in module.named_parameters()
            if p.requires_grad and p.grad is not None and id(p) not in self._trained
        ]
        if not new:
            return
        owned = {
            id(p)
            for optimizer in trainer.optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        }
        for name, p in [(name, p) for name, p in new if id(p) not in owned][:_MOST]:
            if bool((dense(p.grad) != 0).any()):
                self._now[plain_name(name)] = sample(p)

    @torch.no_grad()
    def close(self) -> None:
        """Compare their elements with those of the look before."""
        found = {}
        for name, x in self._now.items():
            before = self._before.get(name)
            if before is not None and torch.equal(before, x):
                found[name] = self.looks.get(name, 0) + 1
        self.looks, self._before, self._now = found, self._now, {}
