"""Draw what each augmentation makes of two photographs.

The photographs, scikit-learn's two, are one batch of images. Each augmentation transforms both at
once, each by a draw of its own, as it does with a training batch on the device:

    python examples/augmentation.py

It takes seconds on a CPU. The picture is written next to this script, or to ``--out``.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib import style
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_practices.data import augmentation
from lightning_practices.files import replacing
from lightning_practices.pictures import STYLE

HEIGHT, WIDTH = 80, 120
GAP = 4  # pixels between two photographs
SEED = 117
COLUMNS = 3

# The names, the options that differ from the defaults, so that more is seen, and the titles.
PANELS: dict[str, tuple[dict[str, Any], str]] = {
    "flip": ({}, "flip: half of the images"),
    "vertical_flip": ({}, "vertical_flip: half of them"),
    "rotation": ({"interpolation": "bilinear"}, "rotation: up to 22.5 degrees"),
    "crop": ({"size": (50, 75)}, "crop: to a given size"),
    "affine": ({"interpolation": "bilinear"}, "affine: also scaled, sheared"),
    "shift": ({"width": 0.2, "height": 0.2}, "shift: up to a fifth"),
    "brightness": ({"brightness": 0.6}, "brightness: 0.6"),
    "cutout": ({"p": 1.0}, "cutout: random erasing"),
    "auto": ({}, "auto: AutoAugment"),
    "rand": ({}, "rand: RandAugment"),
    "trivial": ({}, "trivial: TrivialAugment"),
    "photos": ({"size": (HEIGHT, WIDTH)}, "photos: four in a row"),
    "mixup": ({"num_classes": 2}, "mixup"),
    "cutmix": ({"num_classes": 2}, "cutmix"),
}


def load_photographs() -> Tensor:
    """Return the photographs, reduced, as a batch (2, 3, HEIGHT, WIDTH) from 0 to 1."""
    images = torch.stack([torch.tensor(image) for image in load_sample_images().images])
    return interpolate(images.permute(0, 3, 1, 2) / 255, (HEIGHT, WIDTH), mode="area")


def make_panels(photographs: Tensor) -> dict[str, Tensor]:
    """Return the augmented photographs by title."""
    panels = {"The photographs": photographs}
    for seed, (name, (options, title)) in enumerate(PANELS.items(), SEED):
        augment = augmentation(name, **options)  # type: ignore[arg-type]
        if augment.mixing:
            images, targets = augment(photographs, torch.tensor([0, 1]), seed=seed)
            shares = " and ".join(f"{share:.2f}" for share in targets[0].tolist())
            title = f"{title}: targets {shares}"
        else:
            images = augment(photographs, seed=seed)
        panels[title] = images
    return panels


def side_by_side(images: Tensor) -> Tensor:
    """Return two images as one (height, width, 3), with white between them."""
    gap = torch.ones(3, images.shape[2], GAP)
    return torch.cat([images[0], gap, images[1]], 2).permute(1, 2, 0).clamp(0, 1)


@style.context(STYLE)
def draw(panels: dict[str, Tensor], path: Path) -> None:
    """Draw the pairs of photographs with their titles."""
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(7, 0.98 * rows))
    for axis, (title, images) in zip(
        figure.subplots(rows, COLUMNS).flat, panels.items(), strict=True
    ):
        axis.imshow(side_by_side(images).numpy(), interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    with replacing(path) as part:
        figure.savefig(part)
        if part.suffix == ".png":  # 256 colours take a quarter of the bytes
            Image.open(part).convert("RGB").quantize().save(part, optimize=True)


def main() -> None:
    """Draw the picture, and print its path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(__file__).with_suffix(".png")
    parser.add_argument("--out", type=Path, default=default, help="file to draw to")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # for tensors this small, more threads only wait for each other
    draw(make_panels(load_photographs()), arguments.out)
    print(f"Wrote {arguments.out}")


if __name__ == "__main__":
    main()
