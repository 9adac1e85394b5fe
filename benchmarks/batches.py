"""Batches of noise, and functions on them that are timed in turns on the device at hand."""

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.timers import CpuTimer, Timer, make_timer
from lightning_practices.timing import Budget, interleave


def timer_at_hand() -> tuple[Timer, str]:
    """Return the timer of the GPU, or of the CPU where there is none, and the device in words.

    On the CPU torch is set to one thread, whose CPU time counts, so that other work of the machine
    has no effect.
    """
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        return make_timer(), torch.cuda.get_device_name()
    return cpu_timer(), "the CPU, one thread"


def cpu_timer() -> CpuTimer:
    """Return a timer of the CPU time of this thread."""
    return CpuTimer(time.thread_time)


def make_images(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a batch of noise."""
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return (images * 255 if dtype == torch.uint8 else images).to(device, dtype)


def in_turns(
    calls: Mapping[str, Callable[[], object]], timer: Timer, repeats: int
) -> dict[str, list[float]]:
    """Return the seconds of each call in each round.

    Args:
        calls: The calls by name.
        timer: The timer of the device on which they compute.
        repeats: The number of rounds.

    Raises:
        Exception: If a call raises.
    """
    with timer.context():
        laps = {name: timer.prepare([call], capture=False).lap for name, call in calls.items()}
        samples, errors = interleave(laps, Budget(0.0, least=repeats, most=repeats))
    for error in errors.values():
        raise error
    return samples
