"""``preprocessing``: standardised batches against a plain expression, and fits against loaders."""

import argparse
import functools
import io
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from PIL import Image
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms.v2 import functional as transforms
from typing_extensions import override

from benchmarks import screen
from benchmarks.batches import cpu_timer, in_turns, make_images, timer_at_hand
from benchmarks.options import whole
from benchmarks.overhead import GOAL_PERCENT, STEP_MICROSECONDS
from benchmarks.timers import Timer
from lightning_practices.data import BatchPreprocessing, Standardize
from lightning_practices.timing import spread_of

SIDES = (224, 32)  # pixels
FEATURES = 16  # of a small batch
PLAIN, OURS, LOADER, FIT = "plain", "ours", "loader", "fit"


class Files(Dataset[tuple[Tensor, int]]):
    """Images that are decoded from JPEG when they are read, as from an image folder."""

    def __init__(self, count: int, side: int) -> None:
        small = make_images((count, 3, 8, 8), torch.float32, torch.device("cpu"))
        self.files = []
        for image in functional.interpolate(small, size=(side, side), mode="bicubic").clamp(0, 1):
            file = io.BytesIO()
            transforms.to_pil_image(image).save(file, "jpeg")
            self.files.append(file.getvalue())

    def __len__(self) -> int:
        return len(self.files)

    @override
    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        with Image.open(io.BytesIO(self.files[place])) as image:
            return transforms.to_dtype(transforms.pil_to_tensor(image), scale=True), place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m benchmarks preprocessing``."""
    parser.add_argument(
        "--batch-size", type=whole, default=256, help="of a batch (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=whole, default=15, help="timings (default: %(default)s)")


def main(arguments: argparse.Namespace) -> int:
    """Print the times of batches by share of a step, and those of fits by share of the loader's."""
    timer, place = timer_at_hand()
    count, repeats = arguments.batch_size, arguments.repeats
    shapes = [*((count, 3, side, side) for side in SIDES), (count, FEATURES)]
    step = STEP_MICROSECONDS / 1e6
    batches = Table(
        "batch", "(x - mean) * scale", "Standardize", "ratio", "spread",
        f"of a step of {step * 1e3:.0f} ms",
        title=f"Standardize on {place}; goal: {GOAL_PERCENT} % of a step on a GPU",
    )  # fmt: skip
    fits = Table(
        "training split", "read", "read and fitted", "fitting / reading", "spread",
        title="fitting Standardize on the CPU, one thread; goal: 1",
    )  # fmt: skip
    sources: dict[str, Callable[[], Any]] = {
        f"{kind}, {side} pixels": functools.partial(make, count * SIDES[0] // side, side)
        for kind, make in (("JPEG files", Files), ("tensors in memory", _in_memory))
        for side in SIDES
    }
    with screen.progress(len(shapes) + len(sources)) as begin:
        for shape in shapes:
            begin(name := " x ".join(map(str, shape)))
            samples = compare_batches(
                make_images(shape, torch.float32, timer.device), timer, repeats
            )
            share = statistics.median(samples[OURS]) / step
            batches.add_row(name, *figures(samples, PLAIN, OURS), f"{share:.2%}")
        for name, make in sources.items():
            begin(name)
            loader = DataLoader(make(), min(count, 64))
            samples = compare_fits(loader, Standardize(), cpu_timer(), repeats)
            fits.add_row(name, *figures(samples, LOADER, FIT, added=True))
    for table in (batches, fits):
        screen.console().print(table)
    return 0


def _in_memory(count: int, side: int) -> Dataset[Any]:
    images = make_images((count, 3, side, side), torch.float32, torch.device("cpu"))
    return TensorDataset(images, torch.arange(count))


def compare_batches(x: Tensor, timer: Timer, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of a plain expression, and of what a datamodule does to the batch."""
    return in_turns(dict(zip((PLAIN, OURS), ways(x), strict=True)), timer, repeats)


def ways(x: Tensor) -> tuple[Callable[[], Tensor], functools.partial[Any]]:
    """Return the two calls that standardise a batch."""
    layer = Standardize().fit(x).to(x.device)
    shape = (-1, *[1] * (x.dim() - 2))
    mean, scale = layer.mean.view(shape), layer.std.reciprocal().view(shape)
    return lambda: (x - mean) * scale, functools.partial(BatchPreprocessing(layer), (x, 0))


def compare_fits(
    loader: Iterable[Any], layer: Standardize, timer: Timer, repeats: int
) -> dict[str, list[float]]:
    """Return the seconds of reading a loader to its end, and of fitting a layer to it."""

    def read() -> None:
        for _ in loader:
            pass

    return in_turns({LOADER: read, FIT: functools.partial(layer.fit, loader)}, timer, repeats)


def figures(
    samples: Mapping[str, list[float]], base: str, other: str, *, added: bool = False
) -> list[str]:
    """Return both median times, and the median and the spread of their ratios, as texts.

    Args:
        samples: Seconds of each round.
        base: Name of the peer.
        other: Name of ours.
        added: Whether the ratio is of what ours takes beyond the peer.
    """
    pairs = zip(samples[base], samples[other], strict=True)
    ratios = [mine / theirs - added for theirs, mine in pairs]
    times = [f"{statistics.median(samples[name]) * 1e3:.3f} ms" for name in (base, other)]
    return [*times, f"{statistics.median(ratios):.2f}", f"{spread_of(ratios):.2f}"]
