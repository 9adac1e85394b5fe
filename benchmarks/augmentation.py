"""``augmentation``: batches augmented at once, against torchvision's transforms in a loop."""

import argparse
import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torchvision.transforms import v2

from benchmarks import screen
from benchmarks.batches import in_turns, make_images, timer_at_hand
from benchmarks.options import whole
from benchmarks.timers import Timer
from lightning_practices.data import Augmentation
from lightning_practices.timing import spread_of

TRANSFORMS: Mapping[str, Any] = {
    "flip": ["flip"],
    "rotation": ["rotation"],
    "affine, bilinear": [
        v2.RandomAffine(22.5, (0.1, 0.1), (0.9, 1.1), 10, v2.InterpolationMode.BILINEAR)
    ],
    "crop": ["crop"],
    "brightness": ["brightness"],
    "brightness, contrast, saturation": [v2.ColorJitter(0.4, 0.4, 0.4)],
    "cutout": [v2.RandomErasing(1.0)],
    "crop and flip": ["small_images"],
    "trivial (a loop in both)": ["trivial"],
}
DTYPES = {"float32": torch.float32, "uint8": torch.uint8}
ONCE, LOOP = "at once", "loop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m benchmarks augmentation``."""
    parser.add_argument(
        "--batch-size", type=whole, default=256, help="of a batch (default: %(default)s)"
    )
    parser.add_argument("--size", type=whole, default=32, help="of an image (default: %(default)s)")
    parser.add_argument("--repeats", type=whole, default=15, help="timings (default: %(default)s)")


def main(arguments: argparse.Namespace) -> int:
    """Print a table of the times of each transform, and the ratio of the two ways."""
    timer, place = timer_at_hand()
    shape = (arguments.batch_size, 3, arguments.size, arguments.size)
    table = Table(
        "transform", "dtype", "loop over samples", "at once", "loop / at once", "spread",
        title=f"{' x '.join(map(str, shape))} on {place}",
    )  # fmt: skip
    with screen.progress(len(TRANSFORMS) * len(DTYPES)) as begin:
        for name, given in TRANSFORMS.items():
            for label, dtype in DTYPES.items():
                begin(f"{name}, {label}")
                images = make_images(shape, dtype, timer.device)
                samples = compare(Augmentation(given), images, timer, arguments.repeats)
                table.add_row(name, label, *figures(samples))
    screen.console().print(table)
    return 0


def compare(
    augment: Augmentation, images: Tensor, timer: Timer, repeats: int
) -> dict[str, list[float]]:
    """Return the seconds of both ways, which take turns.

    Args:
        augment: The augmentation, whose transforms the loop calls for each image.
        images: The batch.
        timer: The timer of the batch's device.
        repeats: The number of rounds.

    Raises:
        Exception: If one of them raises.
    """
    augment.augment_samples(images, 0)  # which checks the images

    def loop() -> Tensor:
        made = []
        for image in images:
            for transform in augment.per_sample:
                image = transform(image)
            made.append(image)
        return torch.stack(made)

    calls: dict[str, Callable[[], object]] = {
        ONCE: functools.partial(augment.augment_samples, images, 1),
        LOOP: loop,
    }
    return in_turns(calls, timer, repeats)


def figures(samples: Mapping[str, list[float]]) -> list[str]:
    """Return the median times, and the median and the spread of the ratios of rounds, as texts."""
    ratios = [loop / once for loop, once in zip(samples[LOOP], samples[ONCE], strict=True)]
    times = [f"{statistics.median(samples[name]) * 1e3:.2f} ms" for name in (LOOP, ONCE)]
    return [*times, f"{statistics.median(ratios):.2f}", f"{spread_of(ratios):.2f}"]
