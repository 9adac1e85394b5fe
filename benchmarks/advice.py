"""The time that ``advise`` takes as a whole, next to that of one training step."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18, resnet50

from benchmarks import screen
from benchmarks.models import Training, quiet
from benchmarks.timers import threads
from lightning_practices.advisor import advise

_CLASSES = 10
_READ = 8  # batches of a split that advise reads
_SECONDS = 20  # of a program's rounds, after which no other begins
GOAL_STEPS, GOAL_SECONDS = 3, 0.3  # advise may take the greater of both, and the reading of data


class Transformer(nn.Module):
    """A small classifier of sequences."""

    def __init__(self, width: int = 128, length: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(width, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, classes), of tokens, shape (N, length)."""
        logits: Tensor = self.head(self.encoder(self.embed(x) + self.position).mean(dim=1))
        return logits


class WithValidation(Training):
    """The same training with a validation step."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", self.training_step(batch, batch_idx))


@dataclasses.dataclass(frozen=True)
class Program:
    """A network, and the data that it trains on.

    Attributes:
        name: What it is.
        network: Makes the network.
        samples: Makes so many samples.
        number: The number of samples; a fifth of them is the validation split.
        batch: Samples of a batch.
    """

    name: str
    network: Callable[[], nn.Module]
    samples: Callable[[int], Tensor]
    number: int
    batch: int

    def loaders(self) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Return the loaders of both splits, in memory."""
        data = TensorDataset(self.samples(self.number), torch.arange(self.number) % _CLASSES)
        val, train = torch.utils.data.random_split(data, [0.2, 0.8])
        return DataLoader(train, self.batch, shuffle=True), DataLoader(val, self.batch)


PROGRAMS = (
    Program("a small MLP, 20,000 rows",
            lambda: nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, _CLASSES)),
            lambda number: torch.randn(number, 64), 20_000, 64),
    Program("a small MLP, 20,000 images of 32 px",
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.ReLU(),
                                  nn.Linear(64, _CLASSES)),
            lambda number: torch.randn(number, 3, 32, 32), 20_000, 64),
    Program("a small transformer, 64 tokens", Transformer,
            lambda number: torch.randint(0, 1000, (number, 64)), 5000, 32),
    Program("ResNet-18, 64 px", lambda: resnet18(num_classes=_CLASSES),
            lambda number: torch.randn(number, 3, 64, 64), 1280, 32),
    Program("ResNet-50, 224 px", lambda: resnet50(num_classes=_CLASSES),
            lambda number: torch.randn(number, 3, 224, 224), 100, 8),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of one training step, of reading the first batches, and of ``advise``."""

    step: float
    reading: float
    advice: float

    @property
    def goal(self) -> float:
        """Seconds that ``advise`` may take."""
        return max(GOAL_STEPS * self.step, GOAL_SECONDS) + self.reading


def main(rounds: int, device: torch.device) -> bool:
    """Print the cost of ``advise`` for each program, and return whether all are within the goal.

    On the CPU one thread computes, and what counts is the process's own time.
    """
    table = Table("program", "step, ms", "advise, ms", "steps", "goal, ms", "within")
    is_within = True
    with screen.progress(len(PROGRAMS)) as begin:
        for program in PROGRAMS:
            begin(program.name)
            cost = _cost(program, rounds, device)
            is_within &= cost.advice <= cost.goal
            numbers = (1e3 * cost.step, 1e3 * cost.advice, cost.advice / cost.step, 1e3 * cost.goal)
            shown = [f"{x:.1f}" for x in numbers]
            table.add_row(program.name, *shown, "yes" if cost.advice <= cost.goal else "no")
    screen.console().print(table)
    return is_within


def _cost(program: Program, rounds: int, device: torch.device) -> Cost:
    """Return the least times of several rounds, in which step and advice take turns.

    Programs that take long have fewer rounds, and one at least after the warm-up.
    """
    torch.manual_seed(0)
    loaders = program.loaders()
    module = WithValidation(program.network())
    network = program.network().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    clock = _clock(device)

    def step() -> None:
        x, y = (one.to(device) for one in batch)
        torch.autograd.backward(nn.functional.cross_entropy(network(x), y))
        optimizer.step()
        optimizer.zero_grad()

    laps = [step, lambda: _read(loaders), lambda: advise(module, loaders)]
    batch = next(iter(loaders[0]))
    times: list[list[float]] = [[], [], []]
    with quiet(), threads(1) if device.type == "cpu" else contextlib.nullcontext():
        end = time.perf_counter() + _SECONDS
        for i in range(rounds + 1):  # the first is a warm-up
            if i > 1 and time.perf_counter() > end:
                break
            for lap, each in zip(laps, times, strict=True):
                start = clock()
                lap()  # type: ignore[no-untyped-call]
                each.append(clock() - start)
    return Cost(*(min(each[1:]) for each in times))


def _read(loaders: Iterable[DataLoader[Any]]) -> None:
    for loader in loaders:
        for _ in islice(loader, _READ):
            pass


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type == "cpu":
        return time.process_time

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock
