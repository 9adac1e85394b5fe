"""``augmentation``: batches augmented at once, against torchvision's transforms in a loop."""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torchvision.transforms import v2

from benchmarks import screen
from benchmarks.options import whole
from benchmarks.timers import CpuTimer, Timer, make_timer
from lightning_practices.data import Augmentation
from lightning_practices.timing import Budget, interleave, spread_of

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
    on_gpu = torch.cuda.is_available()
    torch.set_num_threads(1)
    # CPU time of this thread, so that other work of the machine has no effect
    timer = make_timer() if on_gpu else CpuTimer(time.thread_time)
    place = torch.cuda.get_device_name() if on_gpu else "the CPU, one thread"
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


def make_images(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a batch of noise."""
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return (images * 255 if dtype == torch.uint8 else images).to(device, dtype)


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
    with timer.context():
        laps = {
            name: timer.prepare([call], capture=False).lap  # its parameters are drawn on the host
            for name, call in calls.items()
        }
        samples, errors = interleave(laps, Budget(0.0, least=repeats, most=repeats))
    for error in errors.values():
        raise error
    return samples


def figures(samples: Mapping[str, list[float]]) -> list[str]:
    """Return the median times, and the median and the spread of the ratios of rounds, as texts."""
    ratios = [loop / once for loop, once in zip(samples[LOOP], samples[ONCE], strict=True)]
    times = [f"{statistics.median(samples[name]) * 1e3:.2f} ms" for name in (LOOP, ONCE)]
    return [*times, f"{statistics.median(ratios):.2f}", f"{spread_of(ratios):.2f}"]
