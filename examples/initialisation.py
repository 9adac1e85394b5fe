"""Draw how initial weights carry activations and gradients through deep networks.

The upper rows are the lectures' figures: histograms of the activations of ten layers, for weights
that are too small, too large, and of Xavier's and He's schemes. The lower panels show networks of
30 layers, each with the scheme of the textbook and as `init.initialize` begins it:

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
from matplotlib.lines import Line2D
from torch import nn

from lightning_practices.files import replacing
from lightning_practices.init import AuditedLayer, audit, initialize

STYLE = Path(__file__).with_name("pictures.mplstyle")
LAYERS, UNITS, SAMPLES = 10, 500, 400  # of the histograms
SHOWN = (1, 2, 4, 6, 8, 10)  # layers with a histogram
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
    "tanh, N(0, 0.01²)": (nn.Tanh, normal(0.01)),
    "tanh, N(0, 1)": (nn.Tanh, normal(1.0)),
    "tanh, Xavier 1 / n": (nn.Tanh, lambda model: initialize(model, "lecun_normal")),
    "ReLU, Xavier 1 / n": (nn.ReLU, lambda model: initialize(model, "lecun_normal")),
    "ReLU, He 2 / n": (nn.ReLU, lambda model: initialize(model, "kaiming_normal")),
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
    axis.text(
        0.97, 0.88, f"{layer.std:.2g}", transform=axis.transAxes, ha="right", fontsize=7,
        color="0.35",
    )  # fmt: skip


def draw_course(axis: Any, audits: Audits, value: Callable[[AuditedLayer], float]) -> None:
    """Draw a value of all layers, dashed for the textbook's schemes."""
    for i, name in enumerate(TEXTBOOK):
        for layers, dashes in ((audits.textbook[name], (0, (2, 1.5))), (audits.auto[name], "-")):
            values = [value(layer) for layer in layers]
            label = name if dashes == "-" else None
            axis.semilogy(
                range(1, DEPTH + 1), values, color=f"C{i}", ls=dashes, lw=1.4, label=label
            )
    axis.set_ylim(1e-4, 20)
    axis.set_xlabel("layer")


@style.context(STYLE)
def draw(audits: Audits, path: Path) -> None:
    """Draw the histograms, and the courses over 30 layers."""
    figure: Any = Figure(figsize=(9, 9.2))
    above, below = figure.subfigures(2, 1, height_ratios=(6, 3.2))
    above.suptitle(
        f"Activations by layer of {UNITS} units, with their standard deviation",
        x=0.01, ha="left", fontsize=11,
    )  # fmt: skip
    axes = above.subplots(len(STARTS), len(SHOWN))
    for row, (name, layers) in zip(axes, audits.starts.items(), strict=True):
        for axis, place in zip(row, SHOWN, strict=True):
            draw_histogram(axis, layers[place - 1], "C0" if name.startswith("tanh") else "C2")
        row[0].set_title(name, fontweight="bold", fontsize=9)
    for axis, place in zip(axes[0], SHOWN, strict=True):
        axis.text(0.03, 0.88, f"layer {place}", transform=axis.transAxes, fontsize=7, color="0.35")
    below.suptitle(
        f"{DEPTH} layers of {WIDTH}: dashed with the textbook's scheme, solid by initialize",
        x=0.01, ha="left", fontsize=11,
    )  # fmt: skip
    left, right = below.subplots(1, 2)
    draw_course(left, audits, lambda layer: layer.std)
    draw_course(right, audits, lambda layer: layer.gradient_std)
    left.set_title("standard deviation of the activations")
    right.set_title("standard deviation of the gradients")
    handles = [Line2D([], [], color=f"C{i}", label=name) for i, name in enumerate(TEXTBOOK)]
    left.legend(handles=handles, loc="lower left", ncols=2)
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
