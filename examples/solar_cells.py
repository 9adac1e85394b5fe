"""Find defective solar cells with few labels: a pretrained network against the same from scratch.

The data are the 2,624 electroluminescence photographs of solar cells of ``elpv-dataset``: a real
inspection problem (S. Deitsch and others, 2019). EfficientNet-Lite0 learns from 200 of them which
are defective: with ImageNet's weights as a feature extractor, where only a new head is trained, and
from scratch, where all layers are. Cells, order of batches, flips, schedule and the number of steps
are the same, and the best weights by the validation loss are tested; each has its own learning
rate. Each seed has its own split, and both networks are tested on the same 500 cells:

    python examples/solar_cells.py

It draws ROC curves and the areas under them to ``runs/solar_cells/auroc.png``, a sheet of test
cells with their predictions to ``cells.png``, and writes all figures to ``summary.json``. A GPU is
used if there is one. More labels, fine-tuning and unfreezing are compared by
``lightning-practices reproduce transfer``.

The photographs' licence is CC BY-NC-SA 4.0, so the sheet may be passed on under it alone.
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from matplotlib import style
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from scipy.stats import sem, t
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc, binary_roc
from typing_extensions import override

from lightning_practices.files import replacing, write_file
from lightning_practices.mixins import TrainingPractices
from lightning_practices.optim import Optimizer
from lightning_practices.pictures import STYLE
from lightning_practices.reproduce import Data, efficientnet_lite0, solar_cells
from lightning_practices.surgery import feature_extractor, replace_head

LABELS, SIZE, BATCH_SIZE, EPOCHS = 200, 96, 16, 10
METHODS = SCRATCH, PRETRAINED = "from scratch", "pretrained"
COLOURS = {SCRATCH: "C6", PRETRAINED: "C0"}
RATES = {SCRATCH: 3e-3, PRETRAINED: 1e-2}  # chosen on other seeds, as for the table `transfer`
SHEET = 4, 6  # rows and columns of cells


class Defects(TrainingPractices, LightningModule):
    """A network whose one output is the logit of a defect."""

    def __init__(self, pretrained: bool, lr: float) -> None:
        super().__init__(optimizer=Optimizer("adamw", lr=lr), schedule="cosine", checkpoint=None)
        self.network = efficientnet_lite0(pretrained)
        if pretrained:
            feature_extractor(self.network, 1)
        else:
            replace_head(self.network, 1)
        self.loss = nn.BCEWithLogitsLoss()

    @override
    def forward(self, x: Tensor) -> Tensor:
        colours = ((x - 0.5) / 0.5).expand(-1, 3, -1, -1)  # as the weights were trained with
        logits: Tensor = self.network(colours.contiguous(memory_format=torch.channels_last))
        return logits.squeeze(1)

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.loss(self(batch[0]), batch[1].float())
        return loss

    @override
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(self(batch[0]), batch[1].float()))

    @override
    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        probabilities: Tensor = self(batch[0]).sigmoid()
        return probabilities


@dataclass
class Run:
    """The predictions of a network for the test cells of a seed."""

    probabilities: Tensor
    defective: Tensor

    @property
    def auroc(self) -> float:
        """The area under the ROC curve, in per cent."""
        return 100 * float(binary_auroc(self.probabilities, self.defective))


def fit(method: str, seed: int, lr: float, epochs: int, out: Path) -> Run:
    """Train a network with a seed's cells, and predict its test cells."""
    data = make_data(seed)
    seed_everything(seed, verbose=False)
    model = Defects(method == PRETRAINED, lr).to(memory_format=torch.channels_last)
    trainer = Trainer(
        max_epochs=epochs, accelerator="auto", devices=1, logger=False, default_root_dir=out,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    predicted: Any = trainer.predict(model, data.test_dataloader())
    return Run(torch.cat(predicted), data.test[:][1])


def make_data(seed: int) -> Data:
    """Return cells to train, validate and test with, in shares of both classes as in all cells."""
    flips = ["flip", "vertical_flip"]
    return solar_cells(seed, LABELS, SIZE, batch_size=BATCH_SIZE, augment=flips)


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean, and half the width of its 95 % interval by Student's t."""
    return statistics.mean(values), float(t.ppf(0.975, len(values) - 1) * sem(values))


def figures(runs: dict[str, list[Run]]) -> dict[str, tuple[float, float]]:
    """Return the area of each method, and the gain by pretraining, seed by seed."""
    areas = {method: [run.auroc for run in its_runs] for method, its_runs in runs.items()}
    gains = [ours - plain for ours, plain in zip(areas[PRETRAINED], areas[SCRATCH], strict=True)]
    return {
        **{method: interval(values) for method, values in areas.items()},
        "gain": interval(gains),
    }


@style.context(STYLE)
def draw(runs: dict[str, list[Run]], path: Path) -> None:
    """Draw the ROC curve of each fit, and the areas with their means and intervals."""
    figure = Figure(figsize=(7, 3.6))
    curves, dots = figure.subplots(1, 2)
    means = figures(runs)
    for row, (method, its_runs) in enumerate(runs.items()):
        colour = COLOURS[method]
        for i, run in enumerate(its_runs):
            wrong, found, _ = binary_roc(run.probabilities, run.defective)
            label = {"label": method} if i == 0 else {}
            curves.plot(100 * wrong, 100 * found, color=colour, lw=1, alpha=0.6, **label)
        dots.plot(
            [run.auroc for run in its_runs], [row] * len(its_runs), "o", color=colour, alpha=0.3
        )
        mean, half = means[method]
        dots.errorbar(mean, row, xerr=half, fmt="D", color=colour)
    curves.plot([0, 100], [0, 100], color="0.6", lw=0.8, ls=":")
    curves.set(xlabel="sound cells called defective, in %", ylabel="defects found, in %")
    curves.set_title(f"{LABELS} labels, {len(runs[PRETRAINED])} fits each")
    curves.legend(loc="lower right")
    gain, half = means["gain"]
    dots.set(xlabel="area under the curve in %", ylim=(1.6, -0.6))
    dots.set_title(f"Gain {gain:.1f} ± {half:.1f} points")
    dots.set_yticks(range(len(METHODS)), METHODS)
    with replacing(path) as part:
        figure.savefig(part)


@style.context(STYLE)
def draw_cells(seed: int, run: Run, path: Path) -> None:
    """Draw test cells in the order of their predictions, with a frame that tells defects."""
    images = make_data(seed).test[:][0][:, 0]
    rows, columns = SHEET
    order = run.probabilities.argsort()
    shown = order[torch.linspace(0, len(order) - 1, rows * columns).long()]
    figure = Figure(figsize=(7, 1.3 * rows))
    panels = figure.subplots(rows, columns)
    for panel, i in zip(panels.flat, shown.tolist(), strict=True):
        panel.imshow(images[i].numpy(), cmap="gray", vmin=0, vmax=1)
        panel.set_title(f"{100 * run.probabilities[i]:.0f} %", fontsize=9, loc="center")
        panel.set(xticks=[], yticks=[])
        panel.grid(visible=False)
        for side in panel.spines.values():
            side.set(visible=True, color="C1" if run.defective[i] else "C2", linewidth=2.5)
    figure.suptitle("Predicted probability of a defect; orange: defective, green: sound")
    with replacing(path) as part:
        figure.savefig(part)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=10, help="runs of each network, at least 2")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="length of a fit")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/solar_cells"), help="folder for results"
    )
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error(f"--seeds must be at least 2, for a spread, got {arguments.seeds}")
    return arguments


def main() -> None:
    """Train both networks with every seed, and print and draw the results."""
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data is in memory
    warnings.filterwarnings("ignore", r".*module\(s\) in eval mode.*")  # the frozen ones
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's, on torch 2.12 and later
    started = time.perf_counter()
    runs: dict[str, list[Run]] = {method: [] for method in METHODS}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TextColumn("fits"), TimeElapsedColumn()) as progress:
        task = progress.add_task("solar cells", total=len(METHODS) * arguments.seeds)
        for seed in range(arguments.seeds):
            for method in METHODS:
                run = fit(method, seed, RATES[method], arguments.epochs, arguments.out)
                runs[method].append(run)
                progress.advance(task)
    means = figures(runs)
    table = Table("network", "area under the ROC curve, %", title="Defective solar cells")
    for name, (mean, half) in means.items():
        table.add_row(name, f"{mean:.1f} ± {half:.1f}")
    Console().print(table, f"{arguments.seeds} seeds; means with 95 % intervals (Student's t).")
    draw(runs, arguments.out / "auroc.png")
    draw_cells(arguments.seeds - 1, runs[PRETRAINED][-1], arguments.out / "cells.png")
    summary = {
        **means,  # each a mean, and half the width of its 95 % interval
        "seeds": arguments.seeds,
        "labels": LABELS,
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_file(arguments.out / "summary.json", json.dumps(summary, indent=2) + "\n")
    print(f"Wrote auroc.png, cells.png and summary.json to {arguments.out}")


if __name__ == "__main__":
    main()
