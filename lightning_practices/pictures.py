"""One look for all pictures: colours, sizes of text, axes.

This module is not private, so that benchmarks and examples can use it too. Importing it loads
nothing of matplotlib, which is optional.
"""

from typing import Any, Literal

__all__ = ["COLOURS", "EDGE", "FAINT", "GREY", "INK", "STYLE", "TEXT_SIZES", "dress"]

# Okabe and Ito, 2008, "Color universal design": colours for any kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
INK, GREY, EDGE, FAINT = "#222222", "#8A8A8A", "#999999", "#E3E3E3"
TEXT_SIZES = {"title": 10.0, "label": 9.0, "tick": 8.0, "legend": 7.5}  # in points, of a panel

_HIDDEN = ("top", "right")  # sides of an axis without a line
_GRID_WIDTH = 0.6

STYLE: dict[str, Any] = {
    "axes.prop_cycle": f"cycler('color', {[*COLOURS]})",
    **{f"axes.spines.{side}": False for side in _HIDDEN},
    "axes.edgecolor": EDGE,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "errorbar.capsize": 4,
    "figure.titlesize": 12,
    "font.size": 11,
    "grid.color": FAINT,
    "grid.linewidth": _GRID_WIDTH,
    "lines.linewidth": 2,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 200,
}
"""Settings of matplotlib for a program whose figures are 7 inches wide: ``style.context(STYLE)``.

A picture then has 1400 pixels, and the least text is still 8 pixels high if a telephone shows 400.
"""


def dress(axis: Any, *, grid: Literal["x", "y", "both"] = "y") -> None:
    """Give an axis of matplotlib this look, and leave matplotlib's settings alone.

    So it is right in any thread, where :data:`STYLE` is for a program's main thread.

    Args:
        axis: The axis.
        grid: The directions in which values are read.
    """
    for side, spine in axis.spines.items():
        spine.set_visible(side not in _HIDDEN)
        spine.set_color(EDGE)
    axis.grid(True, axis=grid, color=FAINT, lw=_GRID_WIDTH)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", labelsize=TEXT_SIZES["tick"], colors=INK, length=3)
