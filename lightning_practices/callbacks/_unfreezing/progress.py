"""The progress of a phase of unfreezing, and its display."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lightning.pytorch import LightningModule
from torch.optim import Optimizer

from lightning_practices._names import count, plain_name
from lightning_practices.callbacks._unfreezing.groups import BLOCK
from lightning_practices.callbacks._unfreezing.plan import Plan
from lightning_practices.callbacks._unfreezing.schedule import Phase, Plateau


@dataclass
class Progress:
    """The position of a fit in its schedule.

    Attributes:
        phase: The index of the present phase.
        epoch: The epoch in which the phase began.
        step: The optimizer steps taken before the phase began.
        best: The best value that the phase's plateau has seen; ``None`` before the first value.
        best_step: The optimizer steps taken when the best value was seen.
        waited: The number of values since the best value.
        is_flat: Whether the plateau is reached.
    """

    phase: int = 0
    epoch: int = 0
    step: int = 0
    best: float | None = None
    best_step: int | None = None
    waited: int = 0
    is_flat: bool = False

    def look(self, plateau: Plateau, value: float, step: int) -> bool:
        """Record a value seen after ``step`` optimizer steps, and say whether it is the best."""
        improves = plateau.improves(value, self.best)
        if improves:
            self.best, self.best_step, self.waited = value, step, 0
        else:
            self.waited += 1
            self.is_flat = self.is_flat or self.waited >= plateau.patience
        return improves

    def reason(self, phase: Phase, epoch: int, step: int) -> str | None:
        """Return why the phase is over, or ``None`` if it isn't."""
        if phase.plateau is not None and self.is_flat:
            return f"{phase.plateau.monitor} no longer improves"
        if phase.epochs is not None and epoch - self.epoch >= phase.epochs:
            return f"after {count(phase.epochs, 'epoch')}"
        if phase.steps is not None and step - self.step >= phase.steps:
            return f"after {count(step - self.step, 'step')}"
        return None


def rates_by_block(optimizers: Iterable[Optimizer]) -> dict[str, float]:
    """Return the learning rate of each trained block: the largest of its groups' rates."""
    rates: dict[str, float] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if any(p.requires_grad for p in group["params"]):
                block = group.get(BLOCK, "others")
                rates[block] = max(float(group["lr"]), rates.get(block, 0.0))
    return rates


def trainable_share(module: LightningModule) -> float:
    """Return the share of all parameter elements that is trainable."""
    total = sum(p.numel() for p in module.parameters())
    return sum(p.numel() for p in module.parameters() if p.requires_grad) / total


def numbers_of(
    optimizers: Iterable[Optimizer], module: LightningModule, phase: int
) -> dict[str, float]:
    """Return the numbers to log: the rate of each trained block, the phase and the share."""
    rates = {f"lr/{block}": rate for block, rate in rates_by_block(optimizers).items()}
    return rates | {"phase": float(phase), "trainable_share": trainable_share(module)}


def table(module: LightningModule, plan: Plan, rates: Mapping[str, float]) -> str:
    """Return a table of the blocks as text: their sizes, trainable elements and rates."""
    parameters = {plain_name(name): p for name, p in module.named_parameters()}
    rows = [("depth", "block", "parameters", "trainable", "rate")]
    for block in plan.blocks:
        own = [parameters[plain_name(name)] for name in block.parameters]
        trained = sum(p.numel() for p in own if p.requires_grad)
        rate = rates.get(block.name) if trained else None
        rows.append(
            (
                str(block.depth),
                block.name,
                f"{sum(p.numel() for p in own):,}",
                f"{trained:,}",
                "" if rate is None else f"{rate:.3g}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        f"{d:>{widths[0]}}  {b:<{widths[1]}}  {n:>{widths[2]}}  {t:>{widths[3]}}  {r}"
        for d, b, n, t, r in rows
    )
    return "\n".join(line.rstrip() for line in lines)
