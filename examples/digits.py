"""Train a small network on scikit-learn's digits, with the practices and without, side by side.

Both twins are the same multilayer perceptron with the same optimizer. The plain one trains for a
fixed number of epochs. The other has layer norms and dropout, stops early and restores its best
weights, by subclassing two mixins. They learn from 200 digits: with so few labels a network
overfits. The script trains both with several seeds, each with training digits of its own, prints a
table and draws a picture:

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
from matplotlib.lines import Line2D
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from scipy.stats import sem, t
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

import lightning_kernels
from lightning_practices.files import replacing, write_file
from lightning_practices.mixins import EarlyStoppingMixin, FusedLayersMixin
from lightning_practices.pictures import STYLE

CLASSES, PIXELS, WIDTH = 10, 64, 256
TRAIN, VALIDATION, TEST = 200, 200, 897  # digits
EPOCHS, BATCH_SIZE, LEARNING_RATE = 60, 20, 1e-3
TWINS = PLAIN, PRACTICES = "plain", "with the practices"
COLOURS = dict(zip(TWINS, ("C6", "C1"), strict=True))


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
    """Return digits to train and to validate, which depend on the seed, and digits to test."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32) / 16  # grey levels from 0 to 16
    y = torch.tensor(labels)
    rest, test = train_test_split(range(len(y)), test_size=TEST, stratify=y, random_state=0)
    train, val = train_test_split(
        rest, train_size=TRAIN, test_size=VALIDATION, stratify=y[rest], random_state=seed
    )
    return [
        DataLoader(TensorDataset(x[i], y[i]), BATCH_SIZE if i is train else TEST, i is train)
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


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean, and half the width of its 95 % interval by Student's t."""
    return statistics.mean(values), float(t.ppf(0.975, len(values) - 1) * sem(values))


def difference(runs: dict[str, list[Run]]) -> tuple[float, float]:
    """Return by how much the practices are better, a pair of runs for each seed."""
    pairs = zip(runs[PRACTICES], runs[PLAIN], strict=True)
    return interval([ours.accuracy - plain.accuracy for ours, plain in pairs])


@style.context(STYLE)
def draw(runs: dict[str, list[Run]], path: Path) -> None:
    """Draw the validation loss of every run, with its best step, and the test accuracies."""
    figure = Figure(figsize=(7, 6.4))
    curves, dots = figure.subplots(2, 1, height_ratios=[2, 1])
    for row, name in enumerate(TWINS):
        colour = COLOURS[name]
        for run in runs[name]:
            epochs = range(1, len(run.losses) + 1)
            curves.plot(epochs, run.losses, color=colour, lw=1, alpha=0.5)
            if run.best_step is not None:
                best = min(run.losses)
                curves.plot(run.losses.index(best) + 1, best, "o", color=colour)
        values = [100 * run.accuracy for run in runs[name]]
        dots.plot(values, [row] * len(values), "o", color=colour, alpha=0.3)
        mean, half = interval(values)
        dots.errorbar(mean, row, xerr=half, fmt="D", color=colour)
    curves.set(xlabel="epoch", ylabel="validation loss", yscale="log")
    curves.set_yticks((0.1, 0.2, 0.5, 1, 2), ("0.1", "0.2", "0.5", "1", "2"))
    curves.set_yticks([], minor=True)
    curves.set_title(f"Validation losses of {len(runs[PLAIN])} fits each; dots: restored weights")
    curves.legend(handles=[Line2D([], [], color=COLOURS[name], label=name) for name in TWINS])
    gain, half = (100 * value for value in difference(runs))
    dots.set(xlabel="accuracy in %: fits (pale), means with 95 % intervals", ylim=(1.6, -0.6))
    dots.set_title(f"Test accuracy: the practices gain {gain:.1f} ± {half:.1f} points")
    dots.set_yticks(range(len(TWINS)), TWINS)
    with replacing(path) as part:
        figure.savefig(part)


def summarise(runs: dict[str, list[Run]], model: Digits, seconds: float) -> dict[str, object]:
    """Return all figures of this run."""
    ours, plain, gain = (
        *(interval([run.accuracy for run in runs[name]]) for name in (PRACTICES, PLAIN)),
        difference(runs),
    )
    example = torch.empty(BATCH_SIZE, WIDTH, device=model.device)
    return {
        "test_accuracy": ours,  # each a mean, and half the width of its 95 % interval
        "plain_test_accuracy": plain,
        "difference": gain,
        "stop_steps": [run.stop_step for run in runs[PRACTICES]],
        "best_steps": [run.best_step for run in runs[PRACTICES]],
        "plain_stop_steps": [run.stop_step for run in runs[PLAIN]],
        "seeds": len(runs[PLAIN]),
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
        mean, half = interval([run.accuracy for run in its_runs])
        stops = [run.stop_step for run in its_runs]
        best = [run.best_step for run in its_runs if run.best_step is not None]
        table.add_row(
            name,
            f"{mean:.4f} ± {half:.4f}",
            f"{min(stops)} to {max(stops)}",
            f"{min(best)} to {max(best)}" if best else "not recorded",
        )
    console.print(table)
    gain, half = difference(runs)
    console.print(
        f"The practices gain {gain:.4f} ± {half:.4f}: mean and 95 % interval (Student's t)."
    )
    console.print(model.fused_layers)
    console.print(f"These layers ran on [bold]{summary['route']}[/], on {summary['device']}.")


def main() -> None:
    """Train both twins with every seed, and print and draw the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=20, help="runs of each twin, at least 2")
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
    runs: dict[str, list[Run]] = {name: [] for name in TWINS}
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
