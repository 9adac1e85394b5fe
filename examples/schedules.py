"""Draw the learning rates of all schedules, and the metric that the plateau schedule watches.

Each schedule starts with the same warmup. The rates are functions of the step, except those of the
plateau schedule. These come from training a small model with noisy gradients. Its loss stalls
at a level that depends on the rate, and falls again when the rate is divided:

    python examples/schedules.py

It takes seconds on a CPU. The picture is written next to this script, or to ``--out``.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib import style
from matplotlib.figure import Figure
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from lightning_practices.files import replacing
from lightning_practices.pictures import STYLE
from lightning_practices.schedules import learning_rate_factor, linear_warmup, plateau

STEPS, WARMUP = 600, 60
RATE = 0.1
SCALE = 150  # steps after which power, exponential and step divide the rate
CHECK = 10  # steps between two checks of the metric
PATIENCE = 7  # checks
WEIGHTS = 1000
SEED = 1


@dataclass
class Rates:
    """The rate at each step by the schedule's name, and the metric at each check."""

    rates: dict[str, list[float]]
    metric: list[float]


def run_scheduled(schedule: str) -> list[float]:
    """Return the rates of a schedule that is a function of the step."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=RATE)
    steps = STEPS if schedule in ("cosine", "one_cycle") else SCALE
    factor = learning_rate_factor(schedule, steps, warmup_steps=WARMUP)  # type: ignore[arg-type]
    scheduler = LambdaLR(optimizer, factor)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def run_plateau() -> tuple[list[float], list[float]]:
    """Return the rates of the plateau schedule, and the metric at each check."""
    torch.manual_seed(SEED)
    weights = nn.Parameter(torch.randn(WEIGHTS))
    optimizer = SGD([weights], lr=RATE)
    warmup, divided = linear_warmup(optimizer, WARMUP), plateau(optimizer, patience=PATIENCE)
    rates, metric = [], []
    for step in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        weights.grad = weights.detach() + torch.randn(WEIGHTS)
        optimizer.step()
        warmup.step()
        if (step + 1) % CHECK == 0:
            metric.append(weights.detach().square().mean().item())
            if step >= WARMUP:
                divided.step(metric[-1])
    return rates, metric


def make_rates() -> Rates:
    """Return the rates of all schedules."""
    names = ("power", "exponential", "step", "cosine", "one_cycle")
    rates = {name: run_scheduled(name) for name in names}
    rates["plateau"], metric = run_plateau()
    return Rates(rates, metric)


@style.context(STYLE)
def draw(made: Rates, path: Path) -> None:
    """Draw a panel for each schedule."""
    figure = Figure(figsize=(7, 6.4))
    axes = figure.subplots(3, 2, sharex=True, sharey=True)
    for axis, (name, rates) in zip(axes.flat, made.rates.items(), strict=True):
        axis.axvspan(0, WARMUP, color="0.9")
        axis.plot(range(STEPS), rates)
        axis.set_title(name.replace("_", " ").capitalize())
        axis.set_ylim(0, 1.05 * RATE)
    for axis in axes[:, 0]:
        axis.set_ylabel("learning rate")
    for axis in axes[-1]:
        axis.set_xlabel("optimizer steps")
    axes[0, 0].text(WARMUP + 10, 0.04 * RATE, "grey: warmup", color="0.35")
    metric_axis = axes[-1, -1].twinx()
    metric_axis.semilogy(range(CHECK, STEPS + 1, CHECK), made.metric, color="C1")
    metric_axis.set_ylabel("loss that it watches", color="C1")
    metric_axis.grid(visible=False)
    with replacing(path) as part:
        figure.savefig(part)


def main() -> None:
    """Draw the picture, and print its path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(__file__).with_suffix(".png")
    parser.add_argument("--out", type=Path, default=default, help="file to draw to")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # for tensors this small, more threads only wait for each other
    draw(make_rates(), arguments.out)
    print(f"Wrote {arguments.out}")


if __name__ == "__main__":
    main()
