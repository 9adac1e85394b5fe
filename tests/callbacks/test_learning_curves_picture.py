"""Learning curves: which share a panel, and what is on the picture."""

import math
import random
from typing import Any

import pytest
from matplotlib.figure import Figure

from lightning_practices.callbacks._curves.draw import Best, draw, smoothed
from lightning_practices.callbacks._curves.panels import forks, panels, read
from lightning_practices.callbacks._curves.series import Series

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def series_of(values: list[float], *, every: int = 1, stepwise: bool = False) -> Series:
    series = Series(stepwise)
    for i, value in enumerate(values, start=1):
        series.add(every * i, value)
    return series


def axes_of(figure: Figure) -> dict[str, Any]:
    return {axis.get_title(loc="left"): axis for axis in figure.axes if axis.get_visible()}


def legend_of(axis: Any) -> dict[str, Any]:
    """Return the lines by what the legend calls them."""
    legend = axis.get_legend()
    texts = [text.get_text() for text in legend.get_texts()]
    return dict(zip(texts, legend.legend_handles, strict=True))


def curve_of(axis: Any, colour: str, thin: bool = False) -> list[tuple[float, float]]:
    """Return the points of the curve of a colour."""
    (line,) = (
        line
        for line in axis.lines
        if line.get_color() == colour and (line.get_alpha() is not None) == thin
    )
    return [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]


# Names.


@pytest.mark.parametrize(
    ("name", "split", "quantity", "kind"),
    [
        ("train_loss", "train", "loss", "loss"),
        ("val/loss_epoch", "val", "loss", "loss"),
        ("loss/validation", "val", "loss", "loss"),
        ("acc.valid", "val", "acc", "metric"),
        ("Training Top-5", "train", "Top_5", "metric"),
        ("test-f1", "test", "f1", "metric"),
        ("loss", "", "loss", "loss"),
        ("train", "", "train", "metric"),
        ("pretrain_acc", "", "pretrain_acc", "metric"),
        ("acc_val_best", "", "acc_val_best", "metric"),
        ("val_acc/dataloader_idx_1", "val", "acc", "metric"),
        ("lr-Adam/head", "", "lr_Adam_head", "rate"),
        ("train/lr", "train", "lr", "rate"),
        ("grad_norm/net.0", "", "grad_norm_net_0", "norm"),
        ("grad_clip_threshold-1", "", "grad_clip_threshold_1", "norm"),
        ("abnormal", "", "abnormal", "metric"),
    ],
)
def test_a_name_is_read(name: str, split: str, quantity: str, kind: str) -> None:
    curve = read(name)
    assert (curve.split, curve.quantity, curve.kind) == (split, quantity, kind)


def test_a_quantity_is_a_panel() -> None:
    names = ["lr-Adam", "f1", "val_acc", "grad_norm", "train_Loss_step", "train/acc", "val_loss"]
    found = [(panel.title, [curve.name for curve in panel.curves]) for panel in panels(names)]
    assert found == [
        ("Loss", ["train_Loss_step", "val_loss"]),
        ("acc", ["val_acc", "train/acc"]),
        ("f1", ["f1"]),
        ("learning rate", ["lr-Adam"]),
        ("gradient norm", ["grad_norm"]),
    ]


def test_how_lightning_names_forks() -> None:
    assert forks("a") == ("a_step", "a_epoch")
    assert forks("a/dataloader_idx_1") == ("a_step/dataloader_idx_1", "a_epoch/dataloader_idx_1")


# The picture.


def test_everything_is_where_it_belongs() -> None:
    nan = math.nan
    series = {
        "epoch": series_of([1, 2, 3, 4], every=25),
        "lr-SGD": series_of([0.1, 0.01], every=50),
        "train_loss_step": series_of([1 / t for t in range(1, 101)], stepwise=True),
        "train_loss_epoch": series_of([0.9, 0.6, 0.4, 0.3], every=25),
        "val_loss": series_of([0.9, nan, 0.7, 0.8], every=25),
        "val_acc": series_of([0.1, 0.2, 0.3, 0.4], every=25),
    }
    figure = draw(series, Best("val_loss", 75, 0.7), "Net: 100 optimizer steps")
    axes = axes_of(figure)
    assert list(axes) == ["loss", "acc", "learning rate"]
    assert figure.get_suptitle() == "Net: 100 optimizer steps"
    loss = axes["loss"]
    assert list(legend_of(loss)) == [
        "best: 0.7 at step 75",
        "train_loss_step",
        "train_loss_epoch",
        "val_loss (1 value not finite)",
    ]
    assert curve_of(loss, BLUE, thin=True) == [(t, 1 / t) for t in range(1, 101)]
    assert curve_of(loss, BLUE) == [(25, 0.9), (50, 0.6), (75, 0.4), (100, 0.3)]
    assert repr(curve_of(loss, ORANGE)) == repr(
        [(25.0, 0.9), (50.0, nan), (75.0, 0.7), (100.0, 0.8)]
    )
    assert curve_of(axes["acc"], ORANGE) == [(25, 0.1), (50, 0.2), (75, 0.3), (100, 0.4)]
    assert axes["learning rate"].get_yscale() == "log"
    assert loss.get_yscale() == axes["acc"].get_yscale() == "linear"
    (star,) = (line for line in loss.lines if line.get_marker() == "*")
    assert star.get_xydata().tolist() == [[75, 0.7]]
    for axis in axes.values():  # the best, and the ends of epochs
        upright = [line.get_xdata()[0] for line in axis.lines if list(line.get_ydata()) == [0, 1]]
        assert sorted(upright) == [25, 50, 75, 75, 100]
        assert [tick.get_text() for tick in axis.child_axes[0].get_xticklabels()] == list("1234")


def test_the_mark_is_in_the_panel_of_its_value_alone() -> None:
    series = {"val_loss": series_of([1, 2]), "val_acc": series_of([3, 4])}
    axes = axes_of(draw(series, Best("val_acc", 2, 4.0), "Net"))
    assert "best: 4 at step 2" in legend_of(axes["acc"])
    assert list(legend_of(axes["loss"])) == ["val_loss"]


def test_noisy_values_are_smoothed_and_few_are_not() -> None:
    made = random.Random(0)
    values = [made.gauss(0, 1) for _ in range(300)]
    axis = axes_of(draw({"train_loss": series_of(values, stepwise=True)}, None, "Net"))["loss"]
    assert [y for _, y in curve_of(axis, BLUE, thin=True)] == values
    assert [y for _, y in curve_of(axis, BLUE)] == smoothed(values)
    few = axes_of(draw({"train_loss": series_of(values[:9], stepwise=True)}, None, "Net"))["loss"]
    assert [y for _, y in curve_of(few, BLUE)] == values[:9]


def test_smoothing_keeps_straight_lines_and_gaps() -> None:
    line = [3 - 0.5 * i for i in range(200)]
    assert smoothed(line) == pytest.approx(line, rel=1e-9, abs=1e-9)
    for i in (0, 50, 51, 199):
        line[i] = math.nan
    assert smoothed(line) == pytest.approx(line, rel=1e-9, abs=1e-9, nan_ok=True)
    alone = [math.nan] * 100 + [2.0] + [math.nan] * 100
    assert smoothed(alone) == pytest.approx(alone, nan_ok=True)
    assert all(map(math.isnan, smoothed([math.nan] * 40)))


def test_smoothing_takes_noise_away() -> None:
    made = random.Random(0)
    noise = [made.gauss(0, 1) for _ in range(600)]
    smooth = smoothed(noise)
    # Weights of a Gaussian over 10 values: the variance is about 1 / (2 sqrt(pi) 10).
    middle = smooth[50:-50]
    assert sum(y * y for y in middle) / len(middle) < 2 / (2 * math.sqrt(math.pi) * 10)


def test_many_values_show_their_range() -> None:
    values = [(-1.0) ** t * (1 + t) for t in range(3000)]
    axis = axes_of(draw({"train_loss": series_of(values, stepwise=True)}, None, "Net"))["loss"]
    (band,) = axis.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (min(values), max(values))


@pytest.mark.parametrize(
    ("name", "values", "scale"),
    [
        ("val_loss", [1000.0, 1.0], "log"),
        ("val_loss", [50.0, 1.0], "linear"),
        ("val_loss", [1000.0, 0.0], "linear"),
        ("val_loss", [1000.0, -1.0], "linear"),
        ("lr-SGD", [0.1, 0.1], "linear"),
        ("lr-SGD", [0.1, 0.01], "log"),
        ("lr-SGD", [0.1, 0.02], "linear"),
        ("lr-SGD", [0.1, 0.0], "linear"),
        ("lr-SGD", [0.1, 0.01, 0.0], "log"),
        ("lr-SGD", [0.0, 0.0], "linear"),
        ("grad_norm", [2.0, 1.0], "linear"),
        ("grad_norm", [20.0, 1.0], "log"),
    ],
)
def test_scales(name: str, values: list[float], scale: str) -> None:
    (axis,) = axes_of(draw({name: series_of(values)}, None, "Net")).values()
    assert axis.get_yscale() == scale


def test_one_curve_that_spans_little_keeps_the_panel_linear() -> None:
    series = {"train_loss": series_of([1000.0, 1.0]), "val_loss": series_of([1000.0, 500.0])}
    (axis,) = axes_of(draw(series, None, "Net")).values()
    assert axis.get_yscale() == "linear"


def test_a_rate_that_ends_at_0_leaves_the_others_room() -> None:
    (axis,) = axes_of(draw({"lr-SGD": series_of([1e-3, 1e-4, 1e-12])}, None, "Net")).values()
    assert axis.get_ylim()[0] > 1e-8


def test_a_split_has_one_colour_and_no_two_curves_share_one() -> None:
    names = [f"{split}_{what}" for what in ("loss", "acc") for split in ("val", "test", "train")]
    names += [f"val_f1/dataloader_idx_{i}" for i in range(3)] + [f"lr-SGD/pg{i}" for i in range(20)]
    series = {name: series_of([i + 1.0, i + 2.0]) for i, name in enumerate(names)}
    axes = axes_of(draw(series, None, "Net"))
    for title in ("loss", "acc"):
        colours = {name: line.get_color() for name, line in legend_of(axes[title]).items()}
        assert colours == {f"train_{title}": BLUE, f"val_{title}": ORANGE, f"test_{title}": GREEN}
    for title, count in (("f1", 3), ("learning rate", 20)):
        styles = {(line.get_color(), str(line._dash_pattern)) for line in axes[title].lines}
        assert len(styles) == count
    legend = axes["learning rate"].get_legend()
    assert len(legend.get_texts()) == 8
    assert legend.get_title().get_text() == "12 more not named"


def test_a_constant_rate_has_ticks() -> None:
    figure = draw({"lr-SGD": series_of([0.1] * 5)}, None, "Net")
    (axis,) = axes_of(figure).values()
    figure.canvas.draw()
    low, high = axis.get_ylim()
    labels = [text for text in axis.get_yticklabels() if low <= text.get_position()[1] <= high]
    assert sum(bool(text.get_text()) for text in labels) >= 3


def test_equal_curves_are_one_line_that_names_them() -> None:
    equal, other = [0.2, math.nan, 0.1], [0.2, math.nan, 0.3]
    names = {"lr-SGD/a": equal, "lr-SGD/b": other, "lr-SGD/c": equal}
    names |= {f"lr-Adam/{i}": [0.5, 0.4, 0.3] for i in range(5)}
    (axis,) = axes_of(
        draw({name: series_of(values) for name, values in names.items()}, None, "Net")
    ).values()
    assert len(axis.lines) == 3
    not_finite = " (1 value not finite)"
    assert [*legend_of(axis)] == [
        f"lr-SGD/a = lr-SGD/c{not_finite}", f"lr-SGD/b{not_finite}", "lr-Adam/0 = 4 others"
    ]  # fmt: skip


def test_panels_and_curves_are_bounded_and_the_rest_is_named() -> None:
    names = [f"m{i}" for i in range(60)]
    names += ["val_acc", "grad_norm", *(f"lr-SGD/{i}" for i in range(30)), "train_loss", "best_one"]
    series = {name: series_of([i + 1.0, i + 2.0]) for i, name in enumerate(names)}
    figure = draw(series, Best("best_one", 2, 1.0), "Net")
    axes = axes_of(figure)
    assert len(axes) == 12
    assert axes.keys() >= {"acc", "gradient norm", "learning rate", "loss", "best_one", "m0"}
    (note,) = (text.get_text() for text in figure.texts if "not drawn" in text.get_text())
    assert note == "53 not drawn, choose by `metrics`: m7, m8, m9, m10, m11, m12 and 47 more"
    rates = axes["learning rate"]
    assert rates.get_legend().get_title().get_text() == "16 more not named, 6 not drawn"
    few = draw({name: series[name] for name in names[:12]}, None, "Net")
    assert len(axes_of(few)) == 12
    assert not any("not drawn" in text.get_text() for text in few.texts)


def test_panels_have_room_for_their_texts() -> None:
    names = [f"{split}_{what}" for what in ("loss", "acc", "f1") for split in ("train", "val")]
    series = {name: series_of([12345.678, 0.001], every=10**6) for name in [*names, "lr-SGD"]}
    series |= {f"m{i}": series_of([1e-9, 2e-9]) for i in range(12)}
    series["epoch"] = series_of([1.0, 2.0], every=10**6)
    figure = draw(series, None, "Net")
    figure.canvas.draw()
    places = [axis.get_tightbbox() for axis in figure.axes if axis.get_visible()]
    boxes = [place.padded(-3) for place in places if place is not None]
    boxes += [text.get_window_extent() for text in figure.texts]
    frame = figure.bbox
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1
        assert frame.y0 <= box.y0 < box.y1 <= frame.y1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_names_that_mean_something_to_matplotlib() -> None:
    names = ["_hidden", "$x", r"$\frac$", "<b>&"]
    figure = draw({name: series_of([1, 2]) for name in names}, None, r"$\frac$")
    figure.savefig("/dev/null", format="svg")
    assert [next(iter(legend_of(axis))) for axis in axes_of(figure).values()] == names


def test_many_epochs_are_thinned() -> None:
    series = {"epoch": series_of([*range(1, 31)], every=10), "val_loss": series_of([1, 2])}
    (axis,) = axes_of(draw(series, None, "Net")).values()
    ticks = axis.child_axes[0]
    assert [tick.get_text() for tick in ticks.get_xticklabels()] == [
        "5",
        "10",
        "15",
        "20",
        "25",
        "30",
    ]
    assert ticks.get_xticks().tolist() == [50, 100, 150, 200, 250, 300]


@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(0, 1, 1), (1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 2, 2), (7, 3, 3)]
)
def test_the_grid(count: int, rows: int, columns: int) -> None:
    series = {f"metric{i}": series_of([1, 2]) for i in range(count)}
    figure = draw(series, None, "Net")
    grid = figure.axes[0].get_gridspec()
    assert grid is not None
    assert (grid.nrows, grid.ncols) == (rows, columns)
    assert sum(axis.get_visible() for axis in figure.axes) == max(1, count)
