"""Draw how initial weights carry activations and gradients through deep networks.

The upper rows are the lectures' figures: histograms of the activations of ten layers, for weights
that are too small, too large, and of Xavier's and He's schemes. The lower panels show networks of
30 layers: on the left with the textbook's scheme, on the right as `init.initialize` begins them:

    python examples/initialisation.py

It takes seconds on a CPU. The picture is written next to this script, or to ``--out``.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib import style
from matplotlib.figure import Figure
from torch import nn

from lightning_practices.files import replacing
from lightning_practices.init import AuditedLayer, audit, initialize
from lightning_practices.pictures import STYLE

LAYERS, UNITS, SAMPLES = 10, 500, 400  # of the histograms
SHOWN = (1, 2, 5, 10)  # layers with a histogram
DEPTH, WIDTH, BATCH = 30, 256, 256  # of the lower panels
SEED = 0
RANGES = {"tanh": (-1.0, 1.0), "relu": (0.0, 3.0)}

Begin = Callable[[nn.Module], Any]


def normal(std: float) -> Begin:
    """Return a function that draws weights from a normal of one standard deviation."""

    def begin(model: nn.Module) -> None:
        for p in model.parameters():
            nn.init.normal_(p, 0, std) if p.dim() > 1 else nn.init.zeros_(p)

    return begin


def torchs_selu(model: nn.Module) -> None:
    """Initialise as torch does for the nonlinearity "selu"."""
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.kaiming_normal_(p, nonlinearity="selu")
        else:
            nn.init.zeros_(p)


STARTS: dict[str, tuple[Callable[[], nn.Module], Begin]] = {
    "tanh, weights from N(0, 0.01²): the signal dies out": (nn.Tanh, normal(0.01)),
    "tanh, weights from N(0, 1): most units are saturated": (nn.Tanh, normal(1.0)),
    "tanh, Xavier, variance 1 / n: the signal lasts": (
        nn.Tanh,
        lambda model: initialize(model, "lecun_normal"),
    ),
    "ReLU, Xavier, variance 1 / n: the signal shrinks": (
        nn.ReLU,
        lambda model: initialize(model, "lecun_normal"),
    ),
    "ReLU, He, variance 2 / n: the signal keeps its size": (
        nn.ReLU,
        lambda model: initialize(model, "kaiming_normal"),
    ),
}
TEXTBOOK: dict[str, tuple[Callable[[], nn.Module], Begin]] = {
    "ReLU": (nn.ReLU, lambda model: initialize(model, "kaiming_normal")),
    "tanh": (nn.Tanh, lambda model: initialize(model, "xavier_normal")),
    "SELU": (nn.SELU, torchs_selu),
    "ELU": (nn.ELU, lambda model: initialize(model, "lecun_normal")),
    "GELU": (nn.GELU, lambda model: initialize(model, "kaiming_normal")),
    "SiLU": (nn.SiLU, lambda model: initialize(model, "kaiming_normal")),
}


@dataclass
class Audits:
    """The layers of each network, from the input to the output.

    Attributes:
        starts: By the title of the row of histograms.
        textbook: By the activation, with the textbook's scheme.
        auto: By the activation, as ``initialize`` begins it.
    """

    starts: dict[str, list[AuditedLayer]]
    textbook: dict[str, list[AuditedLayer]]
    auto: dict[str, list[AuditedLayer]]


def network(activation: Callable[[], nn.Module], depth: int, width: int) -> nn.Sequential:
    """Return layers of one width, each with an activation."""
    pairs = [(nn.Linear(width, width), activation()) for _ in range(depth)]
    return nn.Sequential(*[layer for pair in pairs for layer in pair])


def audited(
    activation: Callable[[], nn.Module], begin: Begin, depth: int, width: int, samples: int
) -> list[AuditedLayer]:
    """Return the layers of a network that a function has initialised."""
    torch.manual_seed(SEED)
    model, batch = network(activation, depth, width), torch.randn(samples, width)
    begin(model)
    return audit(model, batch).layers


def make_audits() -> Audits:
    """Return the layers of all networks."""
    return Audits(
        {name: audited(*start, LAYERS, UNITS, SAMPLES) for name, start in STARTS.items()},
        {name: audited(*start, DEPTH, WIDTH, BATCH) for name, start in TEXTBOOK.items()},
        {
            name: audited(activation, initialize, DEPTH, WIDTH, BATCH)
            for name, (activation, _) in TEXTBOOK.items()
        },
    )


def draw_histogram(axis: Any, layer: AuditedLayer, colour: str) -> None:
    """Draw the density of a layer's activations."""
    width = (layer.high - layer.low) / len(layer.histogram)
    edges = [layer.low + i * width for i in range(len(layer.histogram) + 1)]
    heights = torch.tensor(layer.histogram) / (sum(layer.histogram) * width)
    axis.stairs(heights.tolist(), edges, fill=True, color=colour)
    axis.set_xlim(*RANGES[layer.activation])
    is_relu = layer.activation == "relu"  # whose zeros would hide all others
    axis.set_ylim(0, 1.25 * float(heights[1:].max() if is_relu else heights.max()))
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.text(0.98, 0.86, f"std {layer.std:.2g}", transform=axis.transAxes, ha="right", size=9)


def draw_course(
    axis: Any, networks: dict[str, list[AuditedLayer]], value: Callable[[AuditedLayer], float]
) -> None:
    """Draw a value of all layers of each network."""
    for name, layers in networks.items():
        axis.semilogy(range(1, DEPTH + 1), [value(layer) for layer in layers], label=name)
    axis.set_ylim(1e-4, 20)


@style.context(STYLE)
def draw(audits: Audits, path: Path) -> None:
    """Draw the histograms, and the courses over 30 layers."""
    figure: Any = Figure(figsize=(7, 12.5))
    above, below = figure.subfigures(2, 1, height_ratios=(7.5, 5))
    heading: dict[str, Any] = {"x": 0.01, "ha": "left", "weight": "bold"}
    above.suptitle(
        f"Activations in {LAYERS} layers, with their standard deviations (std)", **heading
    )
    rows = above.subfigures(len(STARTS), 1)
    for row, (name, layers) in zip(rows, audits.starts.items(), strict=True):
        row.suptitle(name, x=0.01, ha="left")
        for axis, place in zip(row.subplots(1, len(SHOWN)), SHOWN, strict=True):
            draw_histogram(axis, layers[place - 1], "C0" if name.startswith("tanh") else "C2")
            axis.set_xlabel(f"layer {place}", labelpad=0)
    below.suptitle(f"Standard deviations in {DEPTH} layers", **heading)
    panels = below.subplots(2, 2, sharex=True, sharey=True)
    columns = {"the textbook's scheme": audits.textbook, "init.initialize": audits.auto}
    for column, (title, networks) in zip(panels.T, columns.items(), strict=True):
        draw_course(column[0], networks, lambda layer: layer.std)
        draw_course(column[1], networks, lambda layer: layer.gradient_std)
        column[0].set_title(title)
        column[1].set_xlabel("layer")
    panels[0, 0].set_ylabel("of activations")
    panels[1, 0].set_ylabel("of gradients")
    panels[0, 1].legend(loc="lower left", ncols=2)
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
    draw(make_audits(), arguments.out)
    print(f"Wrote {arguments.out}")


if __name__ == "__main__":
    main()
