"""Every table's experiments, with settings for a quick trial."""

import math

import pytest

from lightning_practices.reproduce import Table, all_tables

TABLES = all_tables()
pytestmark = [
    pytest.mark.plain,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Found .* eval mode"),  # frozen on purpose
    pytest.mark.filterwarnings("ignore:.*the phases of ProgressiveUnfreezing"),  # of a whole fit
]


def cells(table: Table) -> dict[tuple[str, str], dict[str, object]]:
    """Return the different settings of a table's cells."""
    found: dict[tuple[str, str], dict[str, object]] = {}
    for row in table.rows:
        for column in table.columns:
            settings = table.settings(row, column, tiny=True)
            if settings not in found.values():
                found[row, column] = settings
    return found


@pytest.mark.parametrize("name", TABLES)
def test_each_cell_has_its_metric_from_two_seeds(name: str) -> None:
    table = TABLES[name]
    metrics = {column.metric for column in table.columns.values()}
    made = [
        table.experiment(seed=seed, **settings)
        for seed in (0, 1)
        for settings in cells(table).values()
    ]
    for one in made:
        values = {metric: one[metric] for metric in metrics}
        assert not any(math.isinf(value) for value in values.values()), values
    half = len(made) // 2
    assert made[:half] != made[half:]  # the seed matters


@pytest.mark.parametrize("name", TABLES)
def test_a_run_is_the_same_again(name: str) -> None:
    table = TABLES[name]
    settings = next(iter(cells(table).values()))
    first, second = (dict(table.experiment(seed=3, **settings)) for _ in range(2))
    assert first == pytest.approx(second, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_lectures_figures_and_the_claim_are_there(table: Table) -> None:
    assert table.source.startswith("S")
    assert table.claim
    assert table.reference in table.rows
