"""What a table is: an experiment, the settings of its rows and columns, the lecture's figures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        metric: The metric of the experiment that it shows.
        unit: Unit of the metric, as printed: ``"%"``, ``"nats"``, ``"steps"``.
        settings: Arguments of the experiment that are particular to this column.
        lecture: What the lecture gives, by row.
        x: Place of the column on an axis, where columns are points of a curve.
        digits: Digits behind the point.
        more_is_better: The direction of the metric.
    """

    metric: str
    unit: str = "%"
    settings: Settings = field(default_factory=dict)
    lecture: Mapping[str, float] = field(default_factory=dict)
    x: float | None = None
    digits: int = 1
    more_is_better: bool = True


@dataclass(frozen=True)
class Table:
    """An experiment of a lecture.

    Attributes:
        name: Short name, for the command and the files.
        title: What is compared, in one line.
        source: The lecture, and the paper that it takes the figures from.
        claim: What the lecture says, in a sentence.
        experiment: A function at the top level of a module. It takes ``seed`` and the settings by
            keyword, and returns metrics by name.
        rows: Settings of each row, by its label.
        columns: Columns, by their label.
        reference: The row that the others are compared with, seed by seed.
        tiny: Settings for a quick trial, which overrule the others.
        axis: Label of the axis for columns that have an ``x``.
        log_axis: Whether this axis is logarithmic.
        alone: Whether a run needs the machine alone, since it is a timing, or since its network
            fills a GPU. Such runs are made one after another.
        on_folder: The table that is measured instead on a folder of images of yours. Its experiment
            also takes ``data``, the path of the folder.
    """

    name: str
    title: str
    source: str
    claim: str
    experiment: Callable[..., Mapping[str, float]]
    rows: Mapping[str, Settings]
    columns: Mapping[str, Column]
    reference: str
    tiny: Settings = field(default_factory=dict)
    axis: str | None = None
    log_axis: bool = False
    alone: bool = False
    on_folder: "Table | None" = None

    def __post_init__(self) -> None:
        """Check that the labels fit together.

        Raises:
            ValueError: If the reference or a lecture's figure belongs to no row.
        """
        named = {self.reference}.union(*(column.lecture for column in self.columns.values()))
        if unknown := named - self.rows.keys():
            raise ValueError(f"{self.name} has no rows {sorted(unknown)}: {[*self.rows]}")

    def settings(self, row: str, column: str, tiny: bool = False) -> dict[str, Any]:
        """Return the arguments of the experiment for one cell, but for the seed."""
        return {**self.rows[row], **self.columns[column].settings, **(self.tiny if tiny else {})}
