"""The measured effects: whole, of the settings that the tables have now, and quoted as they are."""

import re

import pytest

from lightning_practices.reproduce import Results, Table, all_tables
from lightning_practices.reproduce._page import page
from tests.docs.pages import PAGES, ROOT

FOLDER = ROOT / "docs" / "measured"
LEAST = 10  # seeds
MEASURED_TABLES = [
    table for table in all_tables().values() if (FOLDER / f"{table.name}.md").exists()
]
MEASURED = re.compile(r"[+-]?\d+(?:\.\d+)? ± \d+(?:\.\d+)?")


def load(table: Table) -> Results:
    results = Results(table)
    results.load(FOLDER / f"{table.name}.json")
    return results


@pytest.mark.parametrize("table", MEASURED_TABLES, ids=lambda table: table.name)
def test_each_cell_of_a_table_was_measured_with_enough_seeds(table: Table) -> None:
    results = load(table)
    few = [
        (row, column)
        for row in table.rows
        for column in table.columns
        if (cell := results.cell(row, column)) is None or len(cell.values) < LEAST
    ]
    assert not few, "run `lightning-practices reproduce --out docs/measured` again"


@pytest.mark.parametrize("table", MEASURED_TABLES, ids=lambda table: table.name)
def test_the_page_of_a_table_shows_its_results(table: Table) -> None:
    made = page(load(table), f"{table.name}.svg")
    assert (FOLDER / f"{table.name}.md").read_text() == made
    assert (FOLDER / f"{table.name}.svg").read_text().startswith("<?xml")


def quotes(text: str, folder: str = "measured/") -> list[tuple[str, str]]:
    """Return the tables that paragraphs link to, each with a figure that the paragraph gives."""
    link = re.compile(rf"\([./\w]*?{folder}(\w+)\.md\)")
    return [
        (name, figure)
        for paragraph in text.split("\n\n")
        for name in link.findall(paragraph)
        if name != "index"
        for figure in MEASURED.findall(paragraph)
    ]


@pytest.mark.parametrize("place", PAGES)
def test_quoted_figures_are_those_measured(place: str) -> None:
    folder = "" if place == "docs/measured/index.md" else "measured/"
    wrong = [
        (name, figure)
        for name, figure in quotes((ROOT / place).read_text(), folder)
        if figure.lstrip("+-") not in (FOLDER / f"{name}.md").read_text()
    ]
    assert not wrong


def test_wrong_quotes_are_found() -> None:
    text = "It gains 1.2 ± 0.3 points: [measured](../measured/penalties.md).\n\nOther: 3 ± 4."
    assert quotes(text) == [("penalties", "1.2 ± 0.3")]
    assert not quotes("[penalty](penalty.md) of 1 ± 2")


def test_the_index_names_all_tables() -> None:
    text = (FOLDER / "index.md").read_text()
    assert not [table.name for table in MEASURED_TABLES if f"({table.name}.md)" not in text]


def test_no_files_of_other_tables_are_left() -> None:
    assert {path.stem for path in FOLDER.iterdir()} <= {"index", *all_tables()}
