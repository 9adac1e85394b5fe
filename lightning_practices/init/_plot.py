"""The picture of an audit."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_practices.files import replacing
from lightning_practices.pictures import COLOURS, INK, dress

if TYPE_CHECKING:
    from lightning_practices.init._audit import AuditedLayer

_ACTIVATIONS, _GRADIENTS = COLOURS[:2]
_MOST_HISTOGRAMS, _COLUMNS = 12, 6
_SIDE = 1.7  # inches, of a histogram
_MOST_LETTERS = 22  # of a title


def draw(layers: "Sequence[AuditedLayer]", input_std: float, path: Path) -> None:
    """Draw histograms of layers, and below them standard deviations by depth.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Audit.plot draws with matplotlib, which can't be imported: pip install"
            " 'lightning-practices[plots]'"
        ) from error
    shown = _spread(layers)
    rows = max(-(-len(shown) // _COLUMNS), 1)
    figure: Any = Figure(
        figsize=(_SIDE * _COLUMNS, _SIDE * (rows + 1.5)), dpi=100, facecolor="white"
    )
    above, below = figure.subfigures(2, 1, height_ratios=(rows, 1.5))
    axes = above.subplots(rows, _COLUMNS, squeeze=False).flatten().tolist()
    above.subplots_adjust(left=0.05, right=0.98, bottom=0.16, top=0.88, hspace=0.7)
    for axis, layer in zip(axes, shown, strict=False):
        _draw_histogram(axis, layer)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    below.subplots_adjust(left=0.07, right=0.98, bottom=0.22, top=0.86)
    _draw_course(below.subplots(), layers, input_std)
    with replacing(path) as part:
        figure.savefig(part)


def _spread(layers: "Sequence[AuditedLayer]") -> "list[AuditedLayer]":
    """Return at most twelve layers, evenly spread, the first and last among them."""
    if len(layers) <= _MOST_HISTOGRAMS:
        return [*layers]
    step = (len(layers) - 1) / (_MOST_HISTOGRAMS - 1)
    return [layers[round(i * step)] for i in range(_MOST_HISTOGRAMS)]


def _draw_histogram(axis: Any, layer: "AuditedLayer") -> None:
    width = (layer.high - layer.low) / len(layer.histogram)
    lefts = [layer.low + i * width for i in range(len(layer.histogram))]
    axis.bar(lefts, layer.histogram, width=width, align="edge", color=_ACTIVATIONS)
    name = layer.name if len(layer.name) <= _MOST_LETTERS else f"...{layer.name[-_MOST_LETTERS:]}"
    title = axis.set_title(f"{name}\n{layer.activation}", loc="left", fontsize=7, color=INK)
    title.set_parse_math(False)
    axis.set_yticks([])
    axis.tick_params(labelsize=6, colors=INK, length=2)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _draw_course(axis: Any, layers: "Sequence[AuditedLayer]", input_std: float) -> None:
    places = range(1, len(layers) + 1)
    axis.plot(
        [0, *places], [input_std, *(layer.std for layer in layers)], "o-", ms=3, lw=1.4,
        color=_ACTIVATIONS, label="standard deviation of the outputs (at 0: the input)",
    )  # fmt: skip
    axis.plot(
        places, [layer.gradient_std for layer in layers], "s-", ms=3, lw=1.4, color=_GRADIENTS,
        label="of the gradients",
    )  # fmt: skip
    axis.set_yscale("log", nonpositive="mask")
    axis.set_xlabel("layer", fontsize=8, color=INK)
    dress(axis)
    axis.legend(fontsize=7, frameon=False, loc="best")
