"""Compare one network with ensembles of five, trained on few of scikit-learn's digits.

Five networks from five seeds, each trained with one cosine of the learning rate, are tested alone
and as ensembles, with averaged probabilities and with votes. So are five snapshots of a single fit
by ``SnapshotEnsemble``, which takes as many steps as the fit of one network. Each of several
repetitions has its own training data and seeds. The script prints a table and draws a picture:

    python examples/ensemble.py

It takes about a minute on a CPU. The picture is written next to this script, or to ``--out``.
"""

import argparse
import logging
import statistics
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib import style
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import sem, t
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_practices.callbacks import SnapshotEnsemble
from lightning_practices.files import replacing
from lightning_practices.modules import LightningEnsemble
from lightning_practices.pictures import STYLE
from lightning_practices.schedules import cosine_decay

CLASSES, PIXELS, WIDTH = 10, 64, 128
TRAIN, BATCH_SIZE = 200, 20
EPOCHS, LEARNING_RATE = 60, 0.1
STEPS = EPOCHS * TRAIN // BATCH_SIZE
MEMBERS = 5

Scores = dict[str, tuple[float, float]]  # by the method: accuracy, negative log likelihood


class Digits(LightningModule):
    """A multilayer perceptron over the 64 pixels.

    Args:
        scheduled: Whether its learning rate falls along one cosine. If not, a callback sets it.
    """

    def __init__(self, scheduled: bool = True) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.scheduled = scheduled
        self.network = nn.Sequential(
            nn.Linear(PIXELS, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, CLASSES),
        )  # fmt: skip

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    @override
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=LEARNING_RATE, momentum=0.9)
        if not self.scheduled:
            return optimizer
        scheduler = LambdaLR(optimizer, cosine_decay(STEPS))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def make_loaders(seed: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return training data, which depends on the seed, and all other digits to test."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    train, test = train_test_split(range(len(y)), train_size=TRAIN, stratify=y, random_state=seed)
    return (
        DataLoader(TensorDataset(x[train], y[train]), BATCH_SIZE, shuffle=True),
        DataLoader(TensorDataset(x[test], y[test]), len(test)),
    )


def make_trainer(*callbacks: Callback) -> Trainer:
    """Return a quiet Trainer on the CPU."""
    return Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=1, callbacks=list(callbacks), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def score(members: list[Any], loader: DataLoader[Any], **options: Any) -> tuple[float, float]:
    """Return accuracy and negative log likelihood, which is nan for votes."""
    module = LightningEnsemble(members, task="multiclass", **options)
    (result,) = make_trainer().test(module, loader, verbose=False)
    return result["test_accuracy"], result.get("test_loss", float("nan"))


def compare(seed: int) -> Scores:
    """Train and test all methods."""
    train, held_out = make_loaders(seed)
    networks = []
    for member in range(MEMBERS):
        torch.manual_seed(MEMBERS * seed + member)
        networks.append(Digits())
        make_trainer().fit(networks[-1], train)
    torch.manual_seed(MEMBERS * seed)  # the same start as the first network's
    network, snapshots = Digits(scheduled=False), SnapshotEnsemble(MEMBERS)
    make_trainer(snapshots).fit(network, train)
    kept = snapshots.members(network)
    single = [score([network], held_out) for network in networks]
    accuracies, losses = zip(*single, strict=True)
    return {
        "one network": (statistics.mean(accuracies), statistics.mean(losses)),
        "the last snapshot": score(kept[-1:], held_out),
        f"{MEMBERS} snapshots of one training": score(kept, held_out),
        f"{MEMBERS} networks, votes counted": score(networks, held_out, vote="hard"),
        f"{MEMBERS} networks, averaged": score(networks, held_out),
    }


def show(runs: list[Scores]) -> None:
    """Print means and their 95 % intervals over the repetitions."""
    table = Table("method", "training", "test accuracy in %", "better than one by", "NLL in nats")
    for name in runs[0]:
        accuracies = [100 * run[name][0] for run in runs]
        gains = [100 * (run[name][0] - run["one network"][0]) for run in runs]
        losses = [run[name][1] for run in runs]
        steps = STEPS * (MEMBERS if "networks" in name else 1)
        table.add_row(
            name,
            f"{steps} steps",
            spread(accuracies, 2),
            "" if name == "one network" else spread(gains, 2),
            spread(losses, 3) if losses[0] == losses[0] else "no probabilities",
        )
    Console(width=110).print(table)


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean, and half the width of its 95 % interval by Student's t."""
    return statistics.mean(values), float(t.ppf(0.975, len(values) - 1) * sem(values))


def spread(values: list[float], digits: int) -> str:
    """Return the mean and its interval as text."""
    mean, half = interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


@style.context(STYLE)
def draw(runs: list[Scores], path: Path) -> None:
    """Draw by how much each method is better than one network, for each repetition."""
    figure = Figure(figsize=(7, 5.8))
    axes = figure.subplots(2, 1, height_ratios=(4, 3))
    names = [name for name in runs[0] if name != "one network"]
    probable = [name for name in names if "votes" not in name]  # the others give no probabilities
    for axis, column, scale, rows in ((axes[0], 0, 100, names), (axes[1], 1, 1, probable)):
        for row, name in enumerate(rows):
            gains = [scale * (run[name][column] - run["one network"][column]) for run in runs]
            axis.plot(gains, [row] * len(gains), "o", color="C0", alpha=0.3)
            mean, half = interval(gains)
            axis.errorbar(mean, row, xerr=half, fmt="D", color="C1")
        axis.axvline(0, color="0.3", lw=1)
        axis.set_yticks(range(len(rows)), rows)
        axis.set_ylim(len(rows) - 0.5, -0.5)
    accuracy, loss = ([statistics.mean(run["one network"][i] for run in runs)] for i in (0, 1))
    axes[0].set_title(f"Accuracy, compared with one network's {100 * accuracy[0]:.1f} %")
    axes[0].set_xlabel("difference in percentage points (right is better)")
    axes[1].set_title(f"Negative log likelihood, compared with one network's {loss[0]:.2f}")
    axes[1].set_xlabel(
        "difference in nats (left is better)\n"
        f"pale: {len(runs)} repetitions; diamonds: means with 95 % intervals"
    )
    with replacing(path) as part:
        figure.savefig(part)


def main() -> None:
    """Repeat the comparison, and print and draw the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(__file__).with_suffix(".png")
    parser.add_argument("--out", type=Path, default=default, help="file to draw to")
    parser.add_argument("--repetitions", type=int, default=8, help="at least 2")
    arguments = parser.parse_args()
    if arguments.repetitions < 2:
        parser.error(f"--repetitions must be at least 2, for a spread, got {arguments.repetitions}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data is in memory
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's, on torch 2.12 and later
    torch.set_num_threads(1)  # for a network this small, more threads only wait for each other
    seeds = range(arguments.repetitions)
    runs = [compare(seed) for seed in track(seeds, "Training", transient=True)]
    show(runs)
    draw(runs, arguments.out)
    print(f"Wrote {arguments.out}")


if __name__ == "__main__":
    main()
