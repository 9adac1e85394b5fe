"""The random states around a transform."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from lightning_practices._seeds import seed_generators


@contextmanager
def states_kept(device: torch.device | None = None) -> Iterator[None]:
    """Restore the global generators of Python, NumPy, torch's CPU and a device afterwards."""
    module = _module_of(device)
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    on_device = None if module is None else module.get_rng_state(device)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
        if module is not None:
            module.set_rng_state(on_device, device)


def seed_all(seed: int, device: torch.device | None = None) -> None:
    """Seed these generators."""
    seed_generators(seed)
    module = _module_of(device)
    if module is not None:
        own = torch.Generator(device).manual_seed(seed)
        module.set_rng_state(own.get_state(), device)


def drawn_seed() -> int:
    """Draw a seed from torch's global generator on the CPU."""
    return int(torch.empty((), dtype=torch.int64).random_().item())


def _module_of(device: torch.device | None) -> Any:
    if device is None or device.type not in ("cuda", "xpu"):  # the others have no such states
        return None
    return torch.get_device_module(device)
