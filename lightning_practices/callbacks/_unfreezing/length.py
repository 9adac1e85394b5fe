"""The lengths of phases, compared with the length of the fit."""

import math

from lightning.pytorch import LightningModule, Trainer

from lightning_practices.callbacks._trainer.horizon import (
    epochs_of_fit,
    steps_of_fit,
    warn_if_too_short,
)
from lightning_practices.callbacks._unfreezing.plan import BlocksBy, unfreezing_schedule
from lightning_practices.callbacks._unfreezing.schedule import Phase, read_schedule

_LEAST_STEPS = 50  # of a phase; in fewer steps a new head learns little


def automatic_phases(
    trainer: Trainer, module: LightningModule, by: BlocksBy | None
) -> tuple[Phase, ...]:
    """Return the phases of ``"auto"``, in epochs that are chosen from the length of the fit.

    A phase takes as few epochs as have 50 optimizer steps, but all phases before the last one
    together take no more than half of the fit, as far as phases of one epoch allow.
    """
    phases = read_schedule(unfreezing_schedule(module, by))
    steps, epochs = steps_of_fit(trainer), epochs_of_fit(trainer)
    if not steps or not epochs or len(phases) < 2:
        return phases
    wanted = math.ceil(_LEAST_STEPS * epochs / steps)
    most = epochs // (2 * (len(phases) - 1))
    return read_schedule(unfreezing_schedule(module, by, epochs=max(1, min(wanted, most))))


def warn_of_late_phases(trainer: Trainer, phases: tuple[Phase, ...]) -> None:
    """Warn if the fit ends before the last phase begins, even if each plateau came at once."""
    steps, epochs = steps_of_fit(trainer), epochs_of_fit(trainer)
    if not steps or not epochs:
        return
    begin = sum(_least_steps(phase, steps / epochs) for phase in phases[:-1])
    text = (
        f"the phases of ProgressiveUnfreezing before the last one take {math.ceil(begin)}: the"
        f" blocks {', '.join(map(str, phases[-1].blocks))} are never trained, so end earlier phases"
        " sooner (until), or give more max_epochs"
    )
    warn_if_too_short(trainer, steps, math.ceil(begin) + 1, "optimizer step", text)


def _least_steps(phase: Phase, steps_of_epoch: float) -> float:
    """Return the optimizer steps after which a phase may end at the earliest."""
    ends = [0.0] if phase.plateau is not None else []
    if phase.epochs is not None:
        ends.append(phase.epochs * steps_of_epoch)
    if phase.steps is not None:
        ends.append(phase.steps)
    return min(ends, default=0.0)
