"""Draw what dropout, spatial dropout, DropBlock and DropCluster hide of a photograph.

The photograph, in as many positions as a convolutional layer might have, is passed through the four
layers as if its three colours were channels. All have the same rate. DropCluster first learns which
positions go together, from random crops of the two photographs that come with scikit-learn:

    python examples/masks.py

It takes seconds on a CPU. The picture is written next to this script, or to ``--out``.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from lightning_practices.nn import DropBlock2d, DropCluster2d, Dropout, Dropout2d

mpl.use("Agg")  # draws to files, needs no screen

HEIGHT, WIDTH = 32, 48  # positions
PIXELS = 8  # of the photograph, for the side of a position
RATE = 0.3
BLOCK_SIZE = 7
CLUSTERS, CROPS = 40, 300
SEED = 4  # with which spatial dropout drops one of the three channels


@dataclass
class Masks:
    """What is kept, for each layer (3, HEIGHT, WIDTH), and the clusters that one has learnt."""

    kept: dict[str, Tensor]
    clusters: Tensor


def load_photographs() -> list[Tensor]:
    """Return the photographs, (3, height, width) from 0 to 1."""
    images = load_sample_images().images
    return [torch.tensor(image).permute(2, 0, 1).float() / 255 for image in images]


def make_crops(photographs: list[Tensor]) -> Tensor:
    """Return what a layer would see of augmented training data."""
    augment = v2.Compose(
        [v2.RandomResizedCrop((HEIGHT, WIDTH), scale=(0.2, 1.0)), v2.RandomHorizontalFlip()]
    )
    return torch.stack([augment(photographs[i % len(photographs)]) for i in range(CROPS)])


def make_masks(photographs: list[Tensor]) -> Masks:
    """Return what each layer keeps of one sample."""
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
        torch.manual_seed(SEED)  # for each, so that none depends on what another draws
        kept[name] = layer(torch.ones(1, 3, HEIGHT, WIDTH))[0] != 0
    return Masks(kept, drop_cluster.clusters)


def enlarge(positions: Tensor) -> Tensor:
    """Return an image in which each position is a square of pixels."""
    return positions.repeat_interleave(PIXELS, -2).repeat_interleave(PIXELS, -1)


def draw(photograph: Tensor, masks: Masks, path: Path) -> None:
    """Draw the photograph, the clusters, and what each layer leaves of it."""
    from matplotlib import pyplot as plt

    size = (HEIGHT * PIXELS, WIDTH * PIXELS)
    image = interpolate(photograph[None], size, mode="area")[0]
    palette = plt.get_cmap("gist_ncar")
    colours = torch.tensor([palette(i / (CLUSTERS - 1))[:3] for i in range(CLUSTERS)])
    coloured = enlarge(colours[masks.clusters].permute(2, 0, 1))
    panels = {"Input": image}
    for name, kept in masks.kept.items():
        hidden = 1 - kept.double().mean().item()
        panels[f"{name}\np = {RATE}, {hidden:.0%} hidden here"] = image * enlarge(kept)
    panels[f"The clusters\nlearnt from {CROPS} crops"] = (image + coloured) / 2
    figure, axes = plt.subplots(2, 3, figsize=(9, 5), layout="constrained")
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=True):
        axis.imshow(panel.permute(1, 2, 0).numpy())
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    figure.savefig(path, dpi=75)
    plt.close(figure)


def main() -> None:
    """Draw the picture, and say where it is."""
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
