"""The pictures of tables: scales, the lecture's figures, texts that have room."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from lightning_practices.reproduce import Column, Results, Run, Table, all_tables, draw

pytestmark = pytest.mark.plain


def constant(seed: int, row: int, place: int = 0) -> dict[str, float]:
    """Return metrics that the settings tell."""
    return {"error": 10.0 * row + place + seed, "loss": 0.1 * seed}


def results_of(table: Table, seeds: int = 3) -> Results:
    """Return results as if all runs of the table had been made."""
    results = Results(table)
    for row in table.rows:
        for label, column in table.columns.items():
            settings = results.settings(row, label)
            for seed in range(seeds):
                place = [*table.rows].index(row) + 0.1 * len(label)
                metrics = {one.metric: place + seed for one in table.columns.values()}
                metrics[column.metric] = place + seed
                if not results.has(settings, seed):
                    results.runs.append(Run(settings, seed, metrics, 1.0))
    return results


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    saved: list[Any] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        saved.append(self)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def table(**changes: Any) -> Table:
    columns = {
        "error of a": Column("error", lecture={"b": 150.0}),
        "loss of a": Column("loss", "nats"),
        "error of b": Column("error", settings={"place": 50}),
    }
    arguments = {
        "name": "constants", "title": "Constants", "source": "S9", "claim": "none",
        "experiment": constant, "rows": {"a": {"row": 0}, "b": {"row": 1}}, "columns": columns,
        "reference": "a",
    }  # fmt: skip
    return Table(**{**arguments, **changes})


def results_by(table: Table) -> Results:
    """Return the results of the table's own experiment."""
    results = Results(table)
    for row in table.rows:
        for column in table.columns:
            settings = results.settings(row, column)
            for seed in range(3):
                if not results.has(settings, seed):
                    results.runs.append(Run(settings, seed, constant(seed, **settings), 1.0))
    return results


def diamonds(axis: Any) -> list[tuple[float, float]]:
    """Return the places of the open diamonds."""
    return [
        (float(x), float(y))
        for line in axis.lines
        if line.get_marker() == "D" and line.get_markerfacecolor() == "white"
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def texts_of_legends(figure: Any) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_panels_of_one_metric_have_one_scale_that_shows_all_of_them(
    figures: list[Any], tmp_path: Path
) -> None:
    draw(results_by(table()), tmp_path / "constants.png")
    first, loss, second = figures[0].axes
    assert first.get_xlim() == second.get_xlim()
    low, high = first.get_xlim()
    assert low < 0  # of the first panel
    assert high > 150  # the lecture's figure
    assert loss.get_xlim()[1] < 5


def test_the_lectures_figure_is_an_open_diamond_that_a_legend_names(
    figures: list[Any], tmp_path: Path
) -> None:
    draw(results_by(table()), tmp_path / "constants.png")
    assert [diamonds(axis) for axis in figures[0].axes] == [[(150.0, 1.0)], [], []]
    assert texts_of_legends(figures[0]) == ["the lecture's figure"]
    draw(results_by(table(columns={"error": Column("error")})), tmp_path / "without.png")
    assert texts_of_legends(figures[1]) == []


def test_curves_have_the_lectures_figures_at_their_places(
    figures: list[Any], tmp_path: Path
) -> None:
    columns = {
        f"{x:g}": Column("error", settings={"place": x}, lecture={"b": 3 * x}, x=x)
        for x in (1.0, 10.0)
    }
    draw(results_by(table(columns=columns, axis="place", log_axis=True)), tmp_path / "curves.png")
    (axis,) = figures[0].axes
    assert diamonds(axis) == [(1.0, 3.0), (10.0, 30.0)]
    assert texts_of_legends(figures[0]) == ["a", "b", "the lecture's figure"]


LONG = "a row whose label says with many words what it is, and then says some more of it"


def with_long_labels() -> Table:
    rows = {f"{i}: {LONG}": {"row": i} for i in range(4)}
    titles = {f"{i}: {LONG}": Column("error", settings={"place": i}) for i in range(3)}
    return table(title="long labels", rows=rows, columns=titles, reference=f"0: {LONG}")


ALL = {one.title: one for own in all_tables().values() for one in (own, own.on_folder or own)}


@pytest.mark.parametrize("drawn", [*ALL.values(), with_long_labels()], ids=lambda one: one.title)
def test_no_texts_overlap_or_leave_the_picture(
    drawn: Table, figures: list[Any], tmp_path: Path
) -> None:
    draw(results_of(drawn), tmp_path / "table.png")
    (figure,) = figures
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page = figure.bbox.padded(1)
    boxes = [
        (text.get_text(), text.get_window_extent(canvas.get_renderer()))
        for text in set(figure.findobj(Text)) - set(beyond_the_ends(figure))
        if text.get_text() and text.get_visible()
    ]
    assert len(boxes) > 5
    for i, (text, box) in enumerate(boxes):
        assert page.x0 <= box.x0, text
        assert page.y0 <= box.y0, text
        assert box.x1 <= page.x1, text
        assert box.y1 <= page.y1, text
        assert [other for other, its in boxes[:i] if its.padded(-1).overlaps(box)] == [], text


def beyond_the_ends(figure: Any) -> list[Text]:
    """Return the labels of ticks that matplotlib doesn't draw, since their places aren't shown."""
    lines = [line for axis in figure.axes for line in (axis.xaxis, axis.yaxis)]
    return [
        tick.label1
        for line in lines
        for tick in line.get_major_ticks()
        if not min(line.get_view_interval()) <= tick.get_loc() <= max(line.get_view_interval())
    ]
