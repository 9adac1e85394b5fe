"""The random states of a moment of a fit: of the process, its accelerators and its loaders."""

from typing import Any

import torch
from lightning.pytorch import Trainer

from lightning_practices._random_states import (
    random_states,
    set_random_states,
)
from lightning_practices.callbacks._exact_resume.loader import ResumableLoader
from lightning_practices.callbacks._exact_resume.loaders import ResumableLoaders


def loaders_of(trainer: Trainer) -> ResumableLoaders | None:
    """Return the training data; ``None`` if it isn't loaded, or is a combination of the user's."""
    combined = trainer.fit_loop._combined_loader
    return combined if isinstance(combined, ResumableLoaders) else None


def each_loader(trainer: Trainer) -> list[ResumableLoader]:
    """Return the single loaders of :func:`loaders_of`; none if that is ``None``."""
    combined = loaders_of(trainer)
    return [] if combined is None else combined.loaders


def devices_of(trainer: Trainer) -> list[torch.device]:
    """Return the accelerators of this rank whose generators have a state."""
    root = trainer.strategy.root_device
    devices = [root, *(p.device for p in trainer.lightning_module.parameters())]
    kinds = ("cuda", "xpu")
    return [device for device in dict.fromkeys(devices) if device.type in kinds]


def moment(trainer: Trainer, search: bool = False) -> dict[str, Any]:
    """Return the present states of the global generators and of those of each loader."""
    return {
        "states": random_states(devices_of(trainer)),
        "generators": [one.generator_states(search) for one in each_loader(trainer)],
    }


def return_to(trainer: Trainer, earlier: dict[str, Any]) -> None:
    """Restore the states of an earlier moment of this fit."""
    set_random_states(earlier["states"], devices_of(trainer))
    for loader, states in zip(each_loader(trainer), earlier["generators"], strict=False):
        loader.set_generators(states)
