"""Draws the picture of learning curves."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lightning_practices.callbacks._curves.panels import Curve, Panel, chosen, panels
from lightning_practices.callbacks._curves.series import EPOCH, Series
from lightning_practices.pictures import COLOURS, FAINT, GREY, INK, TEXT_SIZES, dress

if TYPE_CHECKING:  # an optional dependency
    from matplotlib.figure import Figure

_SPLIT_COLOURS = dict(zip(("train", "val", "test"), COLOURS, strict=False))
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)))  # once all colours are in use
_BEST = "#111111"
_MARKS = {"error": "#B00020", "warning": COLOURS[4], "hint": COLOURS[5]}  # by severity
_PANEL = (4.6, 3.3)  # width and height in inches
_MOST_MARKERS = 40
_MOST_LABELS = 8
_MOST_LETTERS = 60  # of a label
_MOST_EPOCHS = 6  # ends of epochs that are marked
_LEAST_SMOOTHED = 30  # values; shorter curves are not smoothed
_MOST_DECADES = 4  # shown of learning rates, which may end at 0
_DECADES = 2.0  # a panel is logarithmic if each of its curves spans more
_MOST_PANELS = 12  # each takes a tenth of a second to draw
_MOST_CURVES = 24  # in a panel
_MOST_NAMES = 6  # of panels that are left out
_MARGINS = (0.62, 0.12, 0.46, 0.5)  # of a panel to the left, right, bottom and top, in inches
_HEAD, _FOOT = 0.4, 0.25  # heights of the title and of the note at the bottom, in inches


class Best(NamedTuple):
    """The best value of the monitored name, and the optimizer steps taken when it was seen."""

    name: str
    step: int
    value: float


class Mark(NamedTuple):
    """A finding about the fit: the optimizer steps taken, its identifier, and how severe it is."""

    step: int
    id: str
    severity: str


def draw(
    series: Mapping[str, Series], best: Best | None, title: str, marks: Sequence[Mark] = ()
) -> "Figure":
    """Return a figure with a panel for each quantity, but at most twelve.

    A note at the bottom names the panels that are left out. The figure isn't registered with
    pyplot, so any thread may call this, and the figure needn't be closed.

    Args:
        series: The series by name. The values of ``"epoch"`` mark the ends of epochs.
        best: The best value, to be marked.
        title: The title above the panels.
        marks: Findings, to be marked at the bottom of each panel.
    """
    from matplotlib.figure import Figure

    found = panels(name for name in series if name != EPOCH) or [Panel("nothing logged", "metric")]
    drawn, left = chosen(found, best and best.name, _MOST_PANELS)
    columns = len(drawn) if len(drawn) <= 3 else 2 if len(drawn) == 4 else 3
    rows = math.ceil(len(drawn) / columns)
    size = (_PANEL[0] * columns, _PANEL[1] * rows + _HEAD + _FOOT * bool(left))
    figure = Figure(figsize=size, dpi=120, facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten().tolist()
    _place(figure, size, foot=_FOOT * bool(left))
    for axis, panel in zip(axes, drawn, strict=False):
        _draw_panel(axis, panel, series, best)
        _draw_marks(axis, marks)
        axis.tick_params(labelbottom=True)
        axis.xaxis.set_major_formatter("{x:,.0f}")
    for axis in axes[len(drawn) :]:
        axis.set_visible(False)
    if EPOCH in series:
        for i, axis in enumerate(axes[: len(drawn)]):
            _mark_epochs(axis, series[EPOCH], named=i < columns)
    for axis in axes[: len(drawn)][-columns:]:
        axis.set_xlabel("optimizer steps", color=INK, fontsize=TEXT_SIZES["label"])
    style: dict[str, Any] = {"x": 0.1 / size[0], "ha": "left", "color": INK}
    heading = figure.suptitle(
        title, y=1 - 0.08 / size[1], va="top", fontsize=11, weight="bold", **style
    )
    heading.set_parse_math(False)
    if left:
        note = figure.text(y=0.08 / size[1], s=_left_out(left), fontsize=8, **style)
        note.set_parse_math(False)
    return figure


def _place(figure: "Figure", size: tuple[float, float], foot: float) -> None:
    """Place the axes. Matplotlib's own layouts draw all texts twice, to measure them."""
    (width, height), (left, right, bottom, top) = size, _MARGINS
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=(bottom + foot) / height,
        top=1 - (_HEAD + top) / height,
        wspace=(left + right) / (_PANEL[0] - left - right),
        hspace=(bottom + top) / (_PANEL[1] - bottom - top),
    )


def _left_out(left: Sequence[Panel]) -> str:
    names = ", ".join(panel.title for panel in left[:_MOST_NAMES])
    more = f" and {len(left) - _MOST_NAMES} more" if len(left) > _MOST_NAMES else ""
    return f"{len(left)} not drawn, choose by `metrics`: {names}{more}"


def smoothed(values: Sequence[float]) -> list[float]:
    """Return a smooth curve through noisy values, with nan where a value is not finite.

    At the position of each value a straight line is fitted to all values (local linear regression).
    The weights are Gaussian, with a standard deviation of a sixtieth of the number of values.
    Unlike a weighted mean, the line has no bias at the ends or where the curve is steep.
    """
    y = torch.tensor(values, dtype=torch.float64, device="cpu")
    places = torch.arange(len(y), dtype=torch.float64, device="cpu")
    away = (places - places[:, None]) / max(2.0, len(y) / 60)
    known = y.isfinite()
    weights = torch.exp(-0.5 * away.square()) * known
    y = y.where(known, 0.0)
    s0, s1, s2 = (weights.sum(1), (weights * away).sum(1), (weights * away.square()).sum(1))
    t0, t1 = weights @ y, (weights * away) @ y
    spread = s0 * s2 - s1.square()
    # A single value determines no line, so its weighted mean is used.
    course = torch.where(spread > 1e-6 * s0.square(), (s2 * t0 - s1 * t1) / spread, t0 / s0)
    smooth: list[float] = course.where(known, math.nan).tolist()
    return smooth


def _draw_panel(axis: Any, panel: Panel, series: Mapping[str, Series], best: Best | None) -> None:
    handles, labels = [], []
    groups = _alike(panel.curves, series)
    curves = [alike[0] for alike in groups[:_MOST_CURVES]]
    for alike, (colour, dashes) in zip(groups, _styles(curves), strict=False):
        curve, one = alike[0], series[alike[0].name]
        twin = curve.fork == "step" and any(
            other.fork == "epoch" and (other.split, other.quantity) == (curve.split, curve.quantity)
            for other in curves
        )
        handles.append(_draw_curve(axis, curve, one, colour, dashes, thin=twin))
        labels.append(_named(alike) + _not_finite(one))
    if _is_logarithmic(panel, series):
        axis.set_yscale("log", nonpositive="clip")
        low, high = axis.get_ylim()
        if panel.kind == "rate":
            axis.set_ylim(bottom=max(low, high / 10**_MOST_DECADES))
    if best is not None:
        line = axis.axvline(best.step, color=_BEST, lw=1, ls=(0, (4, 3)), zorder=1.5)
        if any(curve.name == best.name for curve in panel.curves):
            (star,) = axis.plot(
                best.step, best.value, "*", ms=13, color=_BEST, mec="white", mew=0.8, zorder=5
            )
            handles.insert(0, (line, star))
            labels.insert(0, f"best: {best.value:.4g} at step {best.step:,}")
    _legend(axis, handles, labels, not_drawn=len(groups) - len(curves))
    heading = axis.set_title(panel.title, loc="left", color=INK, fontsize=TEXT_SIZES["title"])
    heading.set_parse_math(False)
    dress(axis)


def _alike(curves: Sequence[Curve], series: Mapping[str, Series]) -> list[list[Curve]]:
    """Return groups of curves with equal values, in the order of their first curves."""
    groups: dict[Any, list[Curve]] = {}
    for curve in curves:
        one = series[curve.name]
        # Nan differs from itself.
        bins = tuple((each.step, each.mean if each.finite else None) for each in one.bins)
        groups.setdefault((bins, one.not_finite, one.width), []).append(curve)
    return list(groups.values())


def _named(alike: Sequence[Curve]) -> str:
    """Return the label of curves that are one line."""
    if len(alike) <= 2:
        return " = ".join(curve.name for curve in alike)
    return f"{alike[0].name} = {len(alike) - 1} others"


def _draw_curve(
    axis: Any, curve: Curve, one: Series, colour: str, dashes: Any, *, thin: bool
) -> Any:
    """Draw a curve, and return its line for the legend."""
    steps = [each.step for each in one.bins]
    means = [each.mean for each in one.bins]
    if one.width > 1:
        low, high = [each.low for each in one.bins], [each.high for each in one.bins]
        axis.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    style: dict[str, Any] = {"color": colour, "ls": dashes, "solid_capstyle": "round"}
    if curve.kind == "rate":
        (line,) = axis.plot(steps, means, lw=1.6, **style)
    elif thin:
        (line,) = axis.plot(steps, means, lw=0.9, alpha=0.4, **style)
    elif one.stepwise and len(steps) >= _LEAST_SMOOTHED:
        axis.plot(steps, means, lw=0.8, alpha=0.3, **style)
        (line,) = axis.plot(steps, smoothed(means), lw=1.8, **style)
    else:
        marker = {"marker": "o", "ms": 3} if len(steps) <= _MOST_MARKERS else {}
        (line,) = axis.plot(steps, means, lw=1.6, **marker, **style)
    return line


def _styles(curves: Sequence[Curve]) -> list[tuple[str, Any]]:
    """Return the colour and dashes of each curve.

    A split (train, val or test) has the same colour in all panels. The two curves of a value that
    is logged by step and by epoch have the same style.
    """
    keys = [
        (curve.split, curve.quantity if curve.split else curve.name, curve.loader)
        for curve in curves
    ]
    given: dict[tuple[str, str, str], tuple[str, Any]] = {}
    for key in keys:
        own = _SPLIT_COLOURS.get(key[0])
        if key not in given and own and all(own != colour for colour, _ in given.values()):
            given[key] = own, _DASHES[0]
    free = [
        (colour, dashes)
        for dashes in _DASHES
        for colour in COLOURS
        if (colour, dashes) not in given.values()
    ]
    others = [key for key in dict.fromkeys(keys) if key not in given]
    for i, key in enumerate(others):
        given[key] = free[i % len(free)]
    return [given[key] for key in keys]


def _legend(axis: Any, handles: list[Any], labels: list[str], *, not_drawn: int) -> None:
    more = len(labels) - _MOST_LABELS
    notes = []
    if more > 1:
        handles, labels = handles[:_MOST_LABELS], labels[:_MOST_LABELS]
        notes.append(f"{more} more not named")
    if not_drawn:
        notes.append(f"{not_drawn} not drawn")
    if not handles:
        return
    # Texts are set afterwards: matplotlib leaves out labels that start with an underscore.
    legend = axis.legend(
        handles, ["label"] * len(handles), fontsize=TEXT_SIZES["legend"], frameon=True,
        framealpha=0.85, edgecolor="none", labelcolor=INK, loc="best",
        title=", ".join(notes) or None, title_fontsize=TEXT_SIZES["legend"],
    )  # fmt: skip
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label if len(label) <= _MOST_LETTERS else f"{label[:_MOST_LETTERS]}...")
        text.set_parse_math(False)


def _is_logarithmic(panel: Panel, series: Mapping[str, Series]) -> bool:
    """Say whether the panel has a logarithmic scale.

    Rates and norms that differ by a factor of ten or more have one, and so have panels whose
    curves all span more than two decades. On a smaller range a logarithmic axis has hardly a tick.
    """
    finite = [
        [each.mean for each in series[curve.name].bins if each.finite] for curve in panel.curves
    ]
    known = [values for values in finite if values]
    if panel.kind in ("rate", "norm"):
        positive = [value for values in known for value in values if value > 0]
        return bool(positive) and max(positive) / min(positive) >= 10
    spans = [min(values) > 0 and max(values) / min(values) > 10**_DECADES for values in known]
    return bool(spans) and all(spans)


def _mark_epochs(axis: Any, epochs: Series, *, named: bool) -> None:
    """Mark the ends of epochs; if there are many, those of every n-th epoch."""
    decades = (10**k for k in range(4))
    every = next(
        n * k for k in decades for n in (1, 2, 5) if n * k * _MOST_EPOCHS >= len(epochs.bins)
    )
    chosen = epochs.bins[every - 1 :: every]
    for each in chosen:
        axis.axvline(each.step, color=FAINT, lw=0.6, zorder=0.5)
    if named:
        above = axis.secondary_xaxis("top")
        above.set_xticks([each.step for each in chosen], [f"{each.mean:.0f}" for each in chosen])
        above.tick_params(labelsize=7, colors=GREY, length=0, pad=1)
        above.spines["top"].set_visible(False)
        axis.text(1.0, 1.09, "epochs", transform=axis.transAxes, ha="right", fontsize=7, color=GREY)


def _draw_marks(axis: Any, marks: Sequence[Mark]) -> None:
    """Mark findings by triangles on the axis of steps; those of one step share a label."""
    steps: dict[int, list[Mark]] = {}
    for mark in marks:
        steps.setdefault(mark.step, []).append(mark)
    for step, found in steps.items():
        worst = min(found, key=lambda mark: list(_MARKS).index(mark.severity))
        colour = _MARKS[worst.severity]
        on_axis = axis.get_xaxis_transform()
        axis.plot(
            step, 0.0, "^", transform=on_axis, ms=8, color=colour, mec="white", mew=0.8, zorder=6,
            clip_on=False,
        )  # fmt: skip
        text = ", ".join(mark.id for mark in found)
        axis.annotate(
            text, (step, 0.0), xycoords=on_axis, xytext=(0, 8), textcoords="offset points",
            fontsize=6.5, rotation=90, ha="center", va="bottom", color=INK, zorder=6,
        )  # fmt: skip


def _not_finite(one: Series) -> str:
    if not one.not_finite:
        return ""
    return f" ({one.not_finite:,} value{'s' * (one.not_finite > 1)} not finite)"
