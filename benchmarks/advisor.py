"""``advisor``: the time that TrainingAdvisor adds to a step, and that of ``advise`` as a whole."""

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table
from torch import Tensor, nn
from torchvision.models import resnet18
from typing_extensions import override

from benchmarks import advice, screen
from benchmarks.models import Training, train
from benchmarks.options import whole
from benchmarks.overhead import GOAL_PERCENT, STEP_MICROSECONDS
from lightning_practices.callbacks import TrainingAdvisor
from lightning_practices.timing import take_turns

EVERY = 100  # the default interval
_NEVER = 10**9
_STEPS = 10  # an epoch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m benchmarks advisor``."""
    parser.add_argument("--rounds", type=whole, default=5, help="(default: %(default)s)")
    parser.add_argument("--epochs", type=whole, default=4, help="timed (default: %(default)s)")


def main(arguments: argparse.Namespace) -> int:
    """Print the cost of ``advise``, and of a look of TrainingAdvisor and of other steps.

    What other steps cost is measured on one small layer, by the side of which it is large, and what
    a look costs on a ResNet-18. Fits with and without the advisor take turns in this process. The
    status is 1 if the mean at the default interval, or ``advise``, is above its goal.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_within = advice.main(arguments.rounds, device)
    lap = functools.partial(_milliseconds, epochs=arguments.epochs, device=device)
    laps = [
        functools.partial(lap, *settings)
        for settings in ((_small, None), (_small, _NEVER), (_large, None), (_large, 1))
    ]
    rounds = []
    with screen.progress(arguments.rounds) as begin:
        for i in range(arguments.rounds):
            begin(f"round {i + 1}")
            rounds.append(take_turns(laps))
    times = [statistics.median(each) for each in zip(*rounds, strict=True)]
    other = statistics.median(b - a for a, b, _, _ in rounds)
    look = statistics.median(b - a for _, _, a, b in rounds)
    table = Table("", "without", "with the advisor", "added, ms", "ratio")
    for name, a, b, added in (
        ("a small layer, no look", times[0], times[1], other),
        ("ResNet-18, a look", times[2], times[3], look),
    ):
        table.add_row(name, f"{a:.3f}", f"{b:.3f}", f"{added:.3f}", f"{b / a:.3f}")
    screen.console().print(table)
    mean = other + look / EVERY
    percent = 100 * mean * 1e3 / STEP_MICROSECONDS
    print(
        f"a look each {EVERY} steps adds {other:.3f} + {look:.3f} / {EVERY} = {mean:.3f} ms to a"
        f" step on {device.type}: {100 * mean / times[2]:.2f} % of one of ResNet-18,"
        f" {percent:.2f} % of one of 20 ms (goal: {GOAL_PERCENT:g} %)"
    )
    return int(percent > GOAL_PERCENT or not is_within)


def _small(device: torch.device) -> tuple[nn.Module, Tensor]:
    return nn.Linear(8, 8), torch.randn(8, 8, device=device)


def _large(device: torch.device) -> tuple[nn.Module, Tensor]:
    size, samples = (32, 2) if device.type == "cpu" else (64, 128)
    return resnet18(num_classes=10), torch.randn(samples, 3, size, size, device=device)


class _EpochStarts(Callback):
    """Records the time at which each epoch begins."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter())


def _milliseconds(
    make: Callable[[torch.device], tuple[nn.Module, Tensor]],
    every: int | None,
    epochs: int,
    device: torch.device,
) -> float:
    """Return the milliseconds per step of the shortest epoch; other work only lengthens epochs.

    The first three epochs are a warm-up, in which looks are frequent.
    """
    torch.manual_seed(0)
    network, x = make(device)
    starts = _EpochStarts()
    callbacks: list[Callback] = [starts]
    if every is not None:
        # The batches are one batch, and rules would say so.
        callbacks.append(TrainingAdvisor(every_n_steps=every, ignore=["LP8"]))
    steps = _STEPS if make is _large else 10 * _STEPS
    batches = [(x, torch.arange(len(x), device=device) % 8)]
    train(Training(network), batches, device, callbacks, steps=steps, epochs=epochs + 4)
    times = [end - start for start, end in itertools.pairwise(starts.seconds[3:])]
    return min(times) / steps * 1e3
