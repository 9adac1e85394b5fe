"""Draw the parts of a photograph that dropout, spatial dropout, DropBlock and DropCluster hide.

The photograph, reduced to as many positions as a convolutional layer might have, goes through the
four layers with its three colours as channels. All layers have the same rate. DropCluster first
learns its clusters of positions from random crops of scikit-learn's two photographs:

    python examples/masks.py

It takes seconds on a CPU. The picture is written next to this script, or to ``--out``.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib import colormaps, style
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from lightning_practices.files import replacing
from lightning_practices.nn import DropBlock2d, DropCluster2d, Dropout, Dropout2d
from lightning_practices.pictures import STYLE

HEIGHT, WIDTH = 32, 48  # positions
PIXELS = 3  # side of a position in the picture
RATE = 0.3
BLOCK_SIZE = 7
CLUSTERS, CROPS = 40, 300
SEED = 33  # spatial dropout then drops one of the three channels


@dataclass
class Masks:
    """The kept elements by layer, (3, HEIGHT, WIDTH), and the clusters of DropCluster."""

    kept: dict[str, Tensor]
    clusters: Tensor


def load_photographs() -> list[Tensor]:
    """Return the photographs as tensors (3, height, width) from 0 to 1."""
    images = load_sample_images().images
    return [torch.tensor(image).permute(2, 0, 1).float() / 255 for image in images]


def make_crops(photographs: list[Tensor]) -> Tensor:
    """Return crops, which stand for a layer's input on augmented training data."""
    augment = v2.Compose(
        [v2.RandomResizedCrop((HEIGHT, WIDTH), scale=(0.2, 1.0)), v2.RandomHorizontalFlip()]
    )
    return torch.stack([augment(photographs[i % len(photographs)]) for i in range(CROPS)])


def make_masks(photographs: list[Tensor]) -> Masks:
    """Return the elements of one sample that each layer keeps."""
    torch.manual_seed(SEED)
    drop_cluster = DropCluster2d(RATE, CLUSTERS).fit(make_crops(photographs))
    layers: dict[str, nn.Module] = {
        "Dropout: elements": Dropout(RATE),
        "Spatial dropout: channels": Dropout2d(RATE),
        f"DropBlock: squares of {BLOCK_SIZE}": DropBlock2d(RATE, BLOCK_SIZE, per_channel=False),
        "DropCluster: learnt clusters": drop_cluster,
    }
    kept = {}
    for name, layer in layers.items():
        torch.manual_seed(SEED)  # for each layer, so that they don't depend on one another
        kept[name] = layer(torch.ones(1, 3, HEIGHT, WIDTH))[0] != 0
    return Masks(kept, drop_cluster.clusters)


def enlarge(positions: Tensor) -> Tensor:
    """Return an image in which each position is a square of pixels."""
    return positions.repeat_interleave(PIXELS, -2).repeat_interleave(PIXELS, -1)


@style.context(STYLE)
def draw(photograph: Tensor, masks: Masks, path: Path) -> None:
    """Draw the photograph, the clusters, and the parts that each layer keeps."""
    size = (HEIGHT * PIXELS, WIDTH * PIXELS)
    image = interpolate(photograph[None], size, mode="area")[0]
    palette = colormaps["gist_ncar"]
    colours = torch.tensor([palette(i / (CLUSTERS - 1))[:3] for i in range(CLUSTERS)])
    coloured = enlarge(colours[masks.clusters].permute(2, 0, 1))
    panels = {"Input\nnothing hidden": image}
    for name, kept in masks.kept.items():
        hidden = 1 - kept.double().mean().item()
        panels[f"{name}\np = {RATE}, {100 * hidden:.0f} % hidden"] = image * enlarge(kept)
    panels[f"The clusters\nlearnt from {CROPS} crops"] = (image + coloured) / 2
    figure = Figure(figsize=(7, 4.1))
    axes = figure.subplots(2, 3)
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=True):
        axis.imshow(panel.permute(1, 2, 0).numpy())
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
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
    photographs = load_photographs()
    draw(photographs[0], make_masks(photographs), arguments.out)
    print(f"Wrote {arguments.out}")


if __name__ == "__main__":
    main()
