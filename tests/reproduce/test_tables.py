"""Every table's experiments, with settings for a quick trial."""

import dataclasses
import math

import pytest

from lightning_practices.reproduce import Results, Table, all_tables

TABLES = all_tables()
TRAINED = [name for name, table in TABLES.items() if name != "fusing"]  # which is a timing
pytestmark = [
    pytest.mark.plain,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Found .* eval mode"),  # frozen on purpose
    pytest.mark.filterwarnings("ignore:.*the phases of ProgressiveUnfreezing"),  # of a whole fit
]


@pytest.mark.parametrize("name", TRAINED)
def test_each_cell_has_its_metric_from_two_seeds(name: str) -> None:
    table = TABLES[name]
    metrics = {column.metric for column in table.columns.values()}
    made = [
        table.experiment(seed=seed, **settings)
        for seed in (0, 1)
        for settings in Results(table, tiny=True).different_settings()
    ]
    for one in made:
        values = {metric: one[metric] for metric in metrics}
        assert not any(math.isinf(value) for value in values.values()), values
    half = len(made) // 2
    assert made[:half] != made[half:]  # the seed matters


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_is_the_same_again(name: str) -> None:
    table = TABLES[name]
    settings = Results(table, tiny=True).different_settings()[0]
    first, second = (dict(table.experiment(seed=3, **settings)) for _ in range(2))
    assert first == pytest.approx(second, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_lectures_figures_and_the_claim_are_there(table: Table) -> None:
    for one in (table, table.on_folder or table):
        assert one.source.startswith("S")
        assert one.claim
        assert one.reference in one.rows


def test_the_settings_of_a_table_are_those_of_its_cells_each_once() -> None:
    table = TABLES["early_stopping"]
    assert len(Results(table).different_settings()) == 3 * 2  # three columns show the same runs
    fewer = dataclasses.replace(table, columns=dict([*table.columns.items()][:3]))
    assert len(Results(fewer).different_settings()) == 3
