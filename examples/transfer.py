"""Transfer a network that knows ten digits to another question, with ten labels.

A small convolutional network is pretrained on half of scikit-learn's digits. Then it learns to tell
even from odd by ten images of the other half, one of each digit: from scratch, as a feature
extractor, fine-tuned at once, and unfrozen in phases: those of ``ProgressiveUnfreezing("auto")``,
which last one epoch, and equal ones, which are written to a file and read from it. All methods
start from the same head and see the same batches, and their learning rates fall to 0 along the same
cosine. They are tested after the last step, on all other images of that half. Each seed has its own
halves, labels and pretraining. The question was chosen since the network's knowledge answers it: on
other questions about digits that were tried, pretraining gained little or nothing. The script takes
a few minutes on a CPU:

    python examples/transfer.py

Each method starts at its best learning rate of 0.001, 0.003, 0.01, 0.03 and 0.1: that with the best
mean accuracy on the seeds 100 to 104, which are not in the table. ``--tune`` chooses the rates
again, on half as many other seeds as are compared.

It also takes a network of torchvision and a folder of your images, with ``train`` and ``val`` in it
and in each of these a folder for each class. It then downloads the weights, and ``val`` serves both
to choose the rates and to compare:

    python examples/transfer.py --weights DEFAULT --data FOLDER --model resnet18 --tune

The figures are written to ``runs/transfer/summary.json``. A GPU is used if there is one.
"""

import argparse
import copy
import json
import logging
import math
import os
import statistics
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import sub
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib import style
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.stats import sem, t
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import models
from torchvision.datasets import ImageFolder
from typing_extensions import override

from lightning_practices.callbacks import ProgressiveUnfreezing, unfreezing_schedule, write_schedule
from lightning_practices.files import replacing, write_file
from lightning_practices.mixins import LearningRateScheduleMixin
from lightning_practices.pictures import STYLE
from lightning_practices.surgery import blocks, feature_extractor, input_transform, replace_head

DIGITS = 10  # classes before the transfer
NAMES = ["even", "odd"]  # classes after it
LABELS, BATCH_SIZE = 1, 2  # images of each digit to learn from
SHOWN = 10  # of these images
POINTS = 10  # points of a curve, about
WORKERS = min(4, os.cpu_count() or 1)  # processes that load the images of a folder
PRETRAINING, RATE = (32, 10), 3e-3  # batch size and epochs, and the first learning rate

SCRATCH, EXTRACTOR, AT_ONCE = "from scratch", "feature extractor", "fine-tuned at once"
AUTO, PHASES = "unfrozen, 'auto'", "unfrozen, equal phases"
REFERENCES = SCRATCH, AT_ONCE
COLOURS = {
    SCRATCH: "C6", EXTRACTOR: "C2", AT_ONCE: "C0", AUTO: "C4", PHASES: "C1",
}  # fmt: skip

# Adam's first learning rates: those that --tune tries, and those that it has chosen on digits.
GRID = 1e-3, 3e-3, 1e-2, 3e-2, 1e-1
RATES = {SCRATCH: 3e-3, EXTRACTOR: 1e-2, AT_ONCE: 3e-3, AUTO: 3e-3, PHASES: 3e-3}

Run = dict[int, float]  # accuracy by the number of optimizer steps
Runs = dict[str, list[Run]]  # by method, a run for each seed


@dataclass
class Task:
    """The data, the pretrained network and the length of a fit."""

    pretrained: nn.Module
    fresh: Callable[[], nn.Module]  # makes an untrained network
    train: Dataset[Any]
    labels: list[int]  # of the training data
    test: Dataset[Any]
    names: list[str]  # of the classes
    batch_size: int
    epochs: int


class Classifier(LearningRateScheduleMixin, LightningModule):
    """Train what is not frozen of a network, at a rate that falls to 0 along a cosine."""

    def __init__(self, network: nn.Module, lr: float = 1e-3) -> None:
        super().__init__()
        self.network = network
        self.lr = lr

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.network(x), y)

    @override
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        correct = (self.network(x).argmax(1) == y).float().mean()
        self.log("accuracy", correct, batch_size=len(y))

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class History(Callback):
    """Record the accuracy of each validation."""

    def __init__(self) -> None:
        self.run: Run = {}

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run[trainer.global_step] = trainer.callback_metrics["accuracy"].item()


def make_network(classes: int) -> nn.Sequential:
    """Return four blocks of convolution and batch norm for images of 8 x 8, and a head."""

    def block(inputs: int, outputs: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    return nn.Sequential(OrderedDict(
        block1=block(1, 8), block2=block(8, 16), pool=nn.MaxPool2d(2),
        block3=block(16, 32), block4=block(32, 32), mean=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(), head=nn.Linear(32, classes),
    ))  # fmt: skip


def fit(task: Task, model: Classifier, callbacks: list[Callback], seed: int) -> Run:
    """Train the parameters that are not frozen, and return the accuracies."""
    order = torch.Generator().manual_seed(seed)  # for the order of batches
    history = History()
    workers = WORKERS if isinstance(task.train, ImageFolder) else 0
    load = partial(DataLoader[Any], num_workers=workers, persistent_workers=workers > 0)
    batches = load(task.train, task.batch_size, shuffle=True, generator=order)
    trainer = Trainer(
        max_epochs=task.epochs, accelerator="auto", devices=1, callbacks=[*callbacks, history],
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
        check_val_every_n_epoch=math.gcd(task.epochs, max(1, task.epochs // POINTS)),
    )  # fmt: skip
    trainer.fit(model, batches, load(task.test, 256))
    return history.run


def digits_task(seed: int, epochs: int) -> Task:
    """Pretrain on half of the digits, and return the task of telling even from odd by few."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    split = partial(train_test_split, random_state=seed)
    known, new = split(range(len(y)), train_size=0.5, stratify=y)
    few, rest = split(new, train_size=DIGITS * LABELS, stratify=y[new])
    torch.manual_seed(seed)
    network = make_network(DIGITS)
    seen = TensorDataset(x[known], y[known])
    start = Task(network, nn.Identity, seen, y[known].tolist(), seen, [], *PRETRAINING)
    fit(start, Classifier(network, RATE), [], seed)
    train, test = (TensorDataset(x[i], y[i] % 2) for i in (few, rest))
    fresh = partial(make_network, len(NAMES))
    return Task(network, fresh, train, (y[few] % 2).tolist(), test, NAMES, BATCH_SIZE, epochs)


def folder_task(folder: Path, model: str, weights: str, epochs: int) -> Task:
    """Return the images of a folder and a network of torchvision.

    Raises:
        ValueError: If the model, the weights or a folder is missing, or if the classes differ.
        FileNotFoundError: If there are no classes, or a class has no images.
    """
    known = models.get_model_weights(model)
    if weights != "none" and weights not in known.__members__:
        raise ValueError(f"{model} has no weights {weights!r}: {', '.join(known.__members__)}")
    for part in (folder / "train", folder / "val"):
        if not part.is_dir():
            raise ValueError(f"there is no folder {part}: make it, with a folder for each class")
    chosen = None if weights == "none" else known[weights]
    transform = input_transform(chosen or known["DEFAULT"])
    train, val = (ImageFolder(str(folder / part), transform) for part in ("train", "val"))
    if train.classes != val.classes:
        raise ValueError(f"the classes differ: train has {train.classes}, val has {val.classes}")
    fresh = partial(models.get_model, model, weights=None)
    pretrained, labels = models.get_model(model, weights=chosen), train.targets
    return Task(pretrained, fresh, train, labels, val, train.classes, 32, epochs)


def equal_phases(task: Task) -> list[dict[str, Any]]:
    """Return the schedule of "auto" with phases of equal length instead of one epoch each."""
    network = Classifier(task.pretrained)
    epochs = task.epochs // len(unfreezing_schedule(network))
    return unfreezing_schedule(network, epochs=max(1, epochs))


def prepare(method: str, task: Task, seed: int, schedule: Path) -> tuple[nn.Module, list[Callback]]:
    """Return the network with its new head, and the callbacks of its fit."""
    torch.manual_seed(seed)
    network = task.fresh() if method == SCRATCH else copy.deepcopy(task.pretrained)
    torch.manual_seed(seed)
    if method == EXTRACTOR:
        feature_extractor(network, len(task.names))
        return network, []
    replace_head(network, len(task.names))
    schedules: dict[str, Any] = {AUTO: "auto", PHASES: schedule}
    return network, [ProgressiveUnfreezing(schedules[method])] if method in schedules else []


def compare(
    make_task: Callable[[int], Task], seeds: range, rates: dict[str, float], schedule: Path
) -> tuple[Runs, Task]:
    """Return the runs of each method, one for each seed, and the task of the last seed."""
    runs: Runs = {method: [] for method in COLOURS}
    with Progress(transient=True) as progress:
        bar = progress.add_task("Training", total=len(seeds) * len(runs))
        for seed in seeds:
            task = make_task(seed)
            write_schedule(equal_phases(task), schedule)
            for method, its_runs in runs.items():
                network, callbacks = prepare(method, task, seed, schedule)
                its_runs.append(fit(task, Classifier(network, rates[method]), callbacks, seed))
                progress.advance(bar)
    return runs, task


def tune(make_task: Callable[[int], Task], seeds: int, schedule: Path) -> dict[str, float]:
    """Return the best rate of the grid for each method, on half as many other seeds."""
    others = range(100, 100 + (seeds + 1) // 2)
    same = (dict.fromkeys(COLOURS, rate) for rate in GRID)
    found = [ends(compare(make_task, others, rates, schedule)[0]) for rates in same]
    table = Table(f"seeds {others[0]} to {others[-1]}", *(f"{rate:g}" for rate in GRID))
    chosen = {}
    for method in COLOURS:
        means = [statistics.mean(accuracies[method]) for accuracies in found]
        table.add_row(method, *(f"{mean:.1f}" for mean in means))
        chosen[method] = GRID[means.index(max(means))]
    Console(width=120).print(table)
    return chosen


def ends(runs: Runs) -> dict[str, list[float]]:
    """Return the accuracies after the last step, in per cent."""
    return {name: [100 * [*run.values()][-1] for run in its] for name, its in runs.items()}


def show(runs: Runs, rates: dict[str, float]) -> None:
    """Print means over the seeds and their 95 % intervals, also of differences within a seed."""
    table = Table("method", "rate", "test accuracy in %", *(f"over {o} by" for o in REFERENCES))
    accuracies = ends(runs)
    for method, values in accuracies.items():
        gains = (spread([*map(sub, values, accuracies[other])]) for other in REFERENCES)
        table.add_row(method, f"{rates[method]:g}", spread(values), *gains)
    Console(width=120).print(table)
    its = runs[SCRATCH]
    print(f"Means and 95 % intervals, seeds: {len(its)}, steps of each fit: {max(its[0])}")


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean, and half of its 95 % interval by Student's t, or nan for a single value."""
    free = len(values) - 1  # degrees of freedom
    return statistics.mean(values), float(t.ppf(0.975, free) * sem(values)) if free else math.nan


def spread(values: list[float]) -> str:
    """Return the mean, and its interval if there are several values."""
    mean, half = interval(values)
    return f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} ± {half:.1f}"


@style.context(STYLE)
def draw(runs: Runs, task: Task, path: Path) -> None:
    """Draw the training images, the course of the accuracies, and the final ones."""
    figure = Figure(figsize=(7, 8.6))
    images, courses, last = figure.subplots(3, 1, height_ratios=[0.7, 4, 3.2])
    draw_images(images, task)
    draw_courses(courses, runs, task)
    draw_ends(last, ends(runs))
    with replacing(path) as part:
        figure.savefig(part)


def draw_images(axis: Any, task: Task) -> None:
    """Draw training images, class by class."""
    every = max(1, len(task.labels) // SHOWN)
    chosen = sorted(range(len(task.labels)), key=lambda i: task.labels[i])[::every][:SHOWN]
    images = [task.train[i][0] for i in chosen]
    shades = [(image - image.min()) / (image.max() - image.min()) for image in images]
    tiles = [F.pad(image, [image.shape[-1] // 8] * 4, value=1) for image in shades]
    axis.imshow(torch.cat(tiles, 2).permute(1, 2, 0).numpy(), cmap="gray")
    axis.set_axis_off()
    all_of = "All" if len(tiles) == len(task.labels) else f"{len(tiles)} of the"
    axis.set_title(f"{all_of} {len(task.labels)} images with labels: {', '.join(task.names)}")


def draw_courses(axis: Any, runs: Runs, task: Task) -> None:
    """Draw the mean over the seeds of each method, and the starts of phases."""
    for method, its_runs in runs.items():
        means = {step: 100 * statistics.mean(run[step] for run in its_runs) for step in its_runs[0]}
        axis.plot([*means], [*means.values()], ".-", color=COLOURS[method], label=method)
    axis.set(xlabel="optimizer steps", ylabel="mean test accuracy in %", ylim=(None, 100))
    axis.set_title(f"While training (dotted: {PHASES})\n\n")
    axis.legend(loc="lower right")
    epoch = 0
    for phase in equal_phases(task):
        if epoch < task.epochs:  # a short fit ends before all phases
            step = max(runs[PHASES][0]) * epoch / task.epochs
            axis.axvline(step, color=COLOURS[PHASES], lw=1, ls=":")
            names = ",\n   ".join(name.removeprefix("network.") for name in phase["blocks"])
            axis.text(step, 101, f"+ {names}", color=COLOURS[PHASES], size=10, va="bottom")
        epoch += phase.get("until", {"epoch": 0})["epoch"]


def draw_ends(axis: Any, accuracies: dict[str, list[float]]) -> None:
    """Draw each seed and the means, and say what the best method gains."""
    for row, (method, values) in enumerate(accuracies.items()):
        mean, half = interval(values)
        axis.plot(values, [row] * len(values), "o", color=COLOURS[method], alpha=0.3)
        axis.errorbar(mean, row, xerr=half, fmt="D", color=COLOURS[method])
        axis.annotate(f"{mean:.1f}", (mean, row), (0, 8), textcoords="offset points", ha="center")
    axis.set_yticks(range(len(accuracies)), [*accuracies])
    for label, colour in zip(axis.get_yticklabels(), COLOURS.values(), strict=True):
        label.set_color(colour)
    axis.set_ylim(len(accuracies) - 0.6, -0.7)
    axis.set_xlabel("test accuracy in %\npale: seeds; diamonds: means with 95 % intervals")
    best = max(accuracies, key=lambda method: statistics.mean(accuracies[method]))
    gain = spread([*map(sub, accuracies[best], accuracies[SCRATCH])])
    axis.set_title(f"{best}: {gain} points better than {SCRATCH}".capitalize())


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the arguments, with the defaults of the task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"), help="for results")
    parser.add_argument("--seeds", type=int, help="10 of digits, at least 2, and 1 of a folder")
    parser.add_argument("--epochs", type=int, help="of each fit: 40 on digits, 12 on a folder")
    parser.add_argument("--weights", help="of torchvision, as in DEFAULT, or none, for random ones")
    parser.add_argument("--data", type=Path, help="folder with train/ and val/, a folder a class")
    parser.add_argument("--model", help="of torchvision, default: resnet18")
    parser.add_argument("--tune", action="store_true", help="choose the learning rates anew")
    arguments = parser.parse_args()
    is_folder = arguments.weights is not None
    if is_folder != (arguments.data is not None):
        parser.error("--weights and --data go together: a network of torchvision, and images")
    if arguments.model is not None and not is_folder:
        parser.error("--model needs --weights and --data: digits have a network of their own")
    defaults = {"seeds": 1, "epochs": 12} if is_folder else {"seeds": 10, "epochs": 40}
    least = 1 if is_folder else 2  # for a spread
    for name, default in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    if arguments.seeds < least or arguments.epochs < 1:
        got = f"got {arguments.seeds} and {arguments.epochs}"
        parser.error(f"--seeds must be at least {least} and --epochs 1, {got}")
    return parser, arguments


def main() -> None:
    """Compare the methods, and print and draw the results."""
    parser, arguments = parse()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # digits are in memory
    warnings.filterwarnings("ignore", ".*in eval mode at the start.*")  # all that is frozen
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's, on torch 2.12 and later
    if arguments.weights is None:
        torch.set_num_threads(1)  # for a network this small, more threads only wait for each other
        tasks: Callable[[int], Task] = partial(digits_task, epochs=arguments.epochs)
    else:
        try:
            model = arguments.model or "resnet18"
            task = folder_task(arguments.data, model, arguments.weights, arguments.epochs)
        except (ValueError, FileNotFoundError) as error:
            parser.error(str(error))
        tasks = lambda seed: task  # noqa: E731
    arguments.out.mkdir(parents=True, exist_ok=True)
    schedule = arguments.out / "unfreezing.yaml"
    rates = tune(tasks, arguments.seeds, schedule) if arguments.tune else RATES
    runs, task = compare(tasks, range(arguments.seeds), rates, schedule)
    Console(width=100).print(blocks(task.pretrained))
    print(f"{schedule}:\n\n{schedule.read_text()}")
    show(runs, rates)
    summary = {"test_accuracy_percent": ends(runs), "accuracies_by_step": runs}
    text = json.dumps(summary | {"learning_rates": rates}, indent=2)
    draw(runs, task, arguments.out / "transfer.png")
    write_file(arguments.out / "summary.json", f"{text}\n")
    print(f"Wrote {arguments.out}/transfer.png and {arguments.out}/summary.json")


if __name__ == "__main__":
    main()
