"""Train a small network on scikit-learn's digits, with the practices and without, side by side.

Both twins are the same multilayer perceptron with the same optimizer. The plain one trains for a
fixed number of epochs. The other has layer norms and dropout, stops early and restores its best
weights, by subclassing two mixins. The script trains both with several seeds, prints a table and
draws a picture:

    python examples/digits.py

The figures are written to ``runs/digits/summary.json``. A GPU is used if there is one.
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from matplotlib import style
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

import lightning_kernels
from lightning_practices.files import replacing, write_file
from lightning_practices.mixins import EarlyStoppingMixin, FusedLayersMixin

STYLE = Path(__file__).with_name("pictures.mplstyle")
CLASSES, PIXELS, WIDTH = 10, 64, 256
EPOCHS, BATCH_SIZE, LEARNING_RATE = 60, 64, 1e-3


class PlainDigits(LightningModule):
    """A multilayer perceptron over the 64 pixels, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.network = self.make_network()
        self.loss = nn.CrossEntropyLoss()
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")

    def make_network(self) -> nn.Sequential:
        """Return two hidden layers."""
        return nn.Sequential(
            nn.Linear(PIXELS, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, CLASSES),
        )  # fmt: skip

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss: Tensor = self.loss(self.network(x), y)
        return loss

    @override
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.loss(self.network(x), y))

    @override
    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.accuracy(self.network(x), y)
        self.log("test_accuracy", self.accuracy)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)


class Digits(EarlyStoppingMixin, FusedLayersMixin, PlainDigits):
    """The same with the practices: two base classes, and norms and dropout in the network."""

    def __init__(self) -> None:
        super().__init__(monitor="val_loss", early_stopping=10)

    @override
    def make_network(self) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(PIXELS, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(), nn.Dropout(0.3),
            nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(), nn.Dropout(0.3),
            nn.Linear(WIDTH, CLASSES),
        )  # fmt: skip


class History(Callback):
    """Record the validation loss of every epoch, and move the progress bar."""

    def __init__(self, progress: Progress, description: str) -> None:
        self.losses: list[float] = []
        self.progress = progress
        self.task = progress.add_task(description, total=EPOCHS)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.losses.append(trainer.callback_metrics["val_loss"].item())
        self.progress.advance(self.task)


@dataclass
class Run:
    """The results of one fit."""

    accuracy: float
    losses: list[float]
    stop_step: int
    best_step: int | None = None


def make_loaders(seed: int) -> list[DataLoader[tuple[Tensor, ...]]]:
    """Split the digits into train, validation (one per seed) and test (the same for all seeds)."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32) / 16  # grey levels from 0 to 16
    y = torch.tensor(labels)
    rest, test = train_test_split(range(len(y)), test_size=0.2, stratify=y, random_state=0)
    train, val = train_test_split(rest, test_size=0.2, stratify=y[rest], random_state=seed)
    return [
        DataLoader(TensorDataset(x[i], y[i]), BATCH_SIZE, shuffle=i is train)
        for i in (train, val, test)
    ]


def fit(model: PlainDigits, seed: int, progress: Progress, out: Path) -> Run:
    """Train, then test with the final weights."""
    train, val, test = make_loaders(seed)
    history = History(progress, f"seed {seed}, {type(model).__name__}")
    trainer = Trainer(
        max_epochs=EPOCHS, accelerator="auto", devices=1, callbacks=[history], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, default_root_dir=out,
    )  # fmt: skip
    trainer.fit(model, train, val)
    progress.update(history.task, total=len(history.losses))  # if it stopped early
    (result,) = trainer.test(model, test, verbose=False)
    stopping = model.early_stopping if isinstance(model, Digits) else None
    best = None if stopping is None else stopping.best_step
    return Run(result["test_accuracy"], history.losses, trainer.global_step, best)


@style.context(STYLE)
def draw(runs: dict[str, list[Run]], path: Path) -> None:
    """Draw the validation loss of every run, with its best step, and the test accuracies."""
    figure = Figure(figsize=(11, 4.2))
    curves, dots = figure.subplots(1, 2, width_ratios=[2, 1])
    colours = ("C6", "C1")
    for x, ((name, its_runs), colour) in enumerate(zip(runs.items(), colours, strict=True)):
        for i, run in enumerate(its_runs):
            epochs = range(1, len(run.losses) + 1)
            curves.plot(epochs, run.losses, color=colour, lw=1.2, label=None if i else name)
            if run.best_step is not None:
                best = min(run.losses)
                curves.plot(run.losses.index(best) + 1, best, "o", color=colour, ms=5)
        values = [100 * run.accuracy for run in its_runs]
        spread = torch.linspace(-0.15, 0.15, len(values))  # so that equal ones show
        dots.scatter(x + spread, values, color=colour)
        dots.hlines(statistics.mean(values), x - 0.3, x + 0.3, color=colour, label="mean")
    curves.set(xlabel="epoch", ylabel="validation loss", yscale="log")
    curves.set_title("Each line is a seed, each dot its restored weights")
    curves.legend()
    dots.set(
        ylabel="test accuracy in %", xlim=(-0.6, 1.6), title="Each dot is a seed, each line a mean"
    )
    dots.set_xticks(range(len(runs)), list(runs))
    with replacing(path) as part:
        figure.savefig(part)


def summarise(runs: dict[str, list[Run]], model: Digits, seconds: float) -> dict[str, object]:
    """Return all figures of this run."""
    plain, ours = ([run.accuracy for run in its_runs] for its_runs in runs.values())
    example = torch.empty(BATCH_SIZE, WIDTH, device=model.device)
    return {
        "test_accuracy": statistics.mean(ours),
        "test_accuracy_std": statistics.stdev(ours),
        "plain_test_accuracy": statistics.mean(plain),
        "plain_test_accuracy_std": statistics.stdev(plain),
        "stop_steps": [run.stop_step for run in runs["with the practices"]],
        "best_steps": [run.best_step for run in runs["with the practices"]],
        "plain_stop_steps": [run.stop_step for run in runs["plain"]],
        "seeds": len(ours),
        "fused_layers": [name for layer in model.fused_layers.replaced for name in layer.names],
        "route": lightning_kernels.route(example),
        "device": str(model.device),
        "seconds": round(seconds, 1),
    }


def show(runs: dict[str, list[Run]], model: Digits, summary: dict[str, object]) -> None:
    """Print the tables."""
    console = Console()
    table = Table("twin", "test accuracy", "stopped at step", "best step", title="Digits")
    for name, its_runs in runs.items():
        values = [run.accuracy for run in its_runs]
        mean, spread = statistics.mean(values), statistics.stdev(values)
        best = [str(run.best_step) for run in its_runs if run.best_step is not None]
        table.add_row(
            name,
            f"{mean:.4f} ± {spread:.4f}",
            ", ".join(str(run.stop_step) for run in its_runs),
            ", ".join(best) or "not recorded",
        )
    console.print(table)
    console.print(model.fused_layers)
    console.print(f"These layers ran on [bold]{summary['route']}[/], on {summary['device']}.")


def main() -> None:
    """Train both twins with every seed, and print and draw the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each twin, at least 2")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="folder for results")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error(f"--seeds must be at least 2, for a spread, got {arguments.seeds}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data is in memory
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's, on torch 2.12 and later
    torch.set_num_threads(1)  # for a network this small, more threads only wait for each other
    started = time.perf_counter()
    runs: dict[str, list[Run]] = {"plain": [], "with the practices": []}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TextColumn("epochs"), TimeElapsedColumn()) as progress:
        for seed in range(arguments.seeds):
            for its_runs, twin in zip(runs.values(), (PlainDigits, Digits), strict=True):
                seed_everything(seed, verbose=False)
                model = twin()
                its_runs.append(fit(model, seed, progress, arguments.out))
    assert isinstance(model, Digits)  # the last one trained
    summary = summarise(runs, model, time.perf_counter() - started)
    show(runs, model, summary)
    draw(runs, arguments.out / "learning_curves.png")
    write_file(arguments.out / "summary.json", json.dumps(summary, indent=2) + "\n")
    print(f"Wrote {arguments.out}/learning_curves.png and {arguments.out}/summary.json")


if __name__ == "__main__":
    main()
