"""Results of a table: its runs in a file, and means with intervals."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_practices.files import write_file
from lightning_practices.reproduce._table import Table

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Run:
    """One run of an experiment.

    Attributes:
        settings: Its arguments, but for the seed.
        seed: The seed.
        metrics: What it returned.
        seconds: The time it took.
        machine: The versions and the device that made it.
    """

    settings: Mapping[str, Any]
    seed: int
    metrics: Mapping[str, float]
    seconds: float
    machine: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        values: The metric of each seed.
        mean: Its mean.
        interval: Half the width of the mean's 95 % interval, by Student's t; ``None`` for one seed.
        gain: Mean difference to the reference row, seed by seed; ``None`` in that row.
        gain_interval: Half the width of the difference's interval.
        lecture: The lecture's figure, if it has one.
    """

    values: tuple[float, ...]
    mean: float
    interval: float | None
    gain: float | None = None
    gain_interval: float | None = None
    lecture: float | None = None

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the gain leaves out 0."""
        if self.gain is None or self.gain_interval is None:
            return False
        return abs(self.gain) > self.gain_interval


@dataclass
class Results:
    """The runs of a table so far.

    A file may hold runs of other settings, such as quick trials, or those from before the table was
    changed. They may have taken hours, so they are kept, but they count nowhere: only :attr:`shown`
    does.

    Attributes:
        table: The table.
        tiny: Whether these are runs with the settings for a quick trial.
        data: The folder of images that they were made on, if not on the table's own data.
        runs: The runs, those of other settings too.
    """

    table: Table
    tiny: bool = False
    data: str | None = None
    runs: list[Run] = field(default_factory=list)

    def settings(self, row: str, column: str) -> dict[str, Any]:
        """Return the arguments of the experiment for one cell, but for the seed."""
        data = {} if self.data is None else {"data": self.data}
        return {**self.table.settings(row, column, self.tiny), **data}

    def different_settings(self) -> list[dict[str, Any]]:
        """Return the settings of all cells, each once."""
        found: list[dict[str, Any]] = []
        for row in self.table.rows:
            for column in self.table.columns:
                if (settings := self.settings(row, column)) not in found:
                    found.append(settings)
        return found

    def has(self, settings: Mapping[str, Any], seed: int) -> bool:
        """Return whether there is a run with these settings and this seed."""
        kept = as_json(settings)
        return any(run.seed == seed and run.settings == kept for run in self.runs)

    @property
    def shown(self) -> list[Run]:
        """The runs that a cell shows, without those of other settings."""
        kept = [as_json(settings) for settings in self.different_settings()]
        return [run for run in self.runs if run.settings in kept]

    @property
    def seeds(self) -> int:
        """The number of seeds of the runs that are shown."""
        return len({run.seed for run in self.shown})

    @property
    def seconds(self) -> float:
        """The time of the runs that are shown, one after another."""
        return sum(run.seconds for run in self.shown)

    @property
    def machines(self) -> list[Mapping[str, str]]:
        """The versions and devices that made the runs that are shown, each once."""
        found: list[Mapping[str, str]] = []
        for run in self.shown:
            if run.machine not in found:
                found.append(run.machine)
        return found

    @property
    def machine(self) -> Mapping[str, str]:
        """The versions and the device that made the last of the runs that are shown."""
        return self.machines[-1] if self.machines else {}

    def cell(self, row: str, column: str) -> Cell | None:
        """Return a cell, of the seeds that its runs and those of the reference row have.

        Returns:
            The cell, or ``None`` if there is no run yet.
        """
        own, reference = self._values(row, column), self._values(self.table.reference, column)
        if not own:
            return None
        mean, interval = mean_and_interval([*own.values()])
        lecture = self.table.columns[column].lecture.get(row)
        seeds = own.keys() & reference.keys()
        if row == self.table.reference or not seeds:
            return Cell((*own.values(),), mean, interval, lecture=lecture)
        gain = mean_and_interval([own[seed] - reference[seed] for seed in sorted(seeds)])
        return Cell((*own.values(),), mean, interval, *gain, lecture)

    def _values(self, row: str, column: str) -> dict[int, float]:
        settings, metric = as_json(self.settings(row, column)), self.table.columns[column].metric
        found = {run.seed: run.metrics[metric] for run in self.runs if run.settings == settings}
        return dict(sorted(found.items()))

    def save(self, path: Path) -> None:
        """Write the table, its cells and its runs as JSON."""
        cells = [
            {"row": row, "column": label, "unit": column.unit, **asdict(cell)}
            for label, column in self.table.columns.items()
            for row in self.table.rows
            if (cell := self.cell(row, label)) is not None
        ]
        summary = {
            "seeds": self.seeds,
            "seconds": round(self.seconds, 1),
            "machines": self.machines,
            "cells": cells,
        }
        self._write(path, summary)

    def save_runs(self, path: Path) -> None:
        """Write the runs alone, as :meth:`load` needs them: quick, however many they are."""
        self._write(path, {})

    def _write(self, path: Path, summary: Mapping[str, Any]) -> None:
        content = {
            "table": self.table.name,
            "title": self.table.title,
            "source": self.table.source,
            "claim": self.table.claim,
            "reference": self.table.reference,
            "tiny": self.tiny,
            "data": self.data,
            **summary,
            "runs": [asdict(run) for run in self.runs],
        }
        write_file(path, json.dumps(content, indent=1) + "\n")

    def load(self, path: Path) -> None:
        """Add the runs of a file that :meth:`save` or :meth:`save_runs` has written.

        Raises:
            ValueError: If the file isn't one of this table's.
        """
        try:
            content = json.loads(path.read_text())
            same = content["table"] == self.table.name
            runs = [
                Run(**{"machine": content.get("machine", {}), **run}) for run in content["runs"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no results ({error}): move it away") from error
        if not same:
            raise ValueError(f"{path} holds results of {content['table']}, not {self.table.name}")
        self.runs += runs


def as_json(settings: Mapping[str, Any]) -> Any:
    """Return settings as a JSON file gives them back, to compare with those of a file."""
    return json.loads(json.dumps(settings, default=str))


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    r"""Return the mean and half the width of its 95 % interval, :math:`t\, s / \sqrt n`."""
    from scipy.stats import t

    if len(values) < 2:
        return statistics.mean(values), None
    error = statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)) * error
