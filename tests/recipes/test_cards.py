"""The cards of the recipes, and the pages about them."""

import re
from pathlib import Path

import pytest
import yaml

from lightning_practices.cli._main import COMMANDS, LIGHTNING
from lightning_practices.cli._recipe_files import card, recipe_file, recipe_names

DOCS = Path(__file__).parents[2] / "docs"
HEADINGS = {"", "What for", "What it does", "Change first", "Trade-offs", "Source"}


def words(text: str) -> str:
    return " ".join(text.replace("`", "").split())


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipe_has_a_card_that_the_page_repeats(name: str) -> None:
    found, page = card(name), words((DOCS / "recipes.md").read_text())
    assert found.keys() == HEADINGS
    assert f"| [{name}](#{name}) | {found['']} |" in page
    assert all(words(text) in page for heading, text in found.items() if heading)


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipe_names_its_own_classes_and_commands(name: str) -> None:
    text = recipe_file(name).read_text()
    assert text.startswith(f"# {name}: ")
    assert set(re.findall(r"recipe run (\w+)", text)) <= {name}
    settings = yaml.safe_load(text)
    assert settings["seed_everything"] == 0
    for part in ("model", "data"):
        assert settings[part]["class_path"].startswith("lightning_practices.recipes.")


def test_the_page_of_the_command_shows_each_command() -> None:
    page = (DOCS / "command.md").read_text()
    for command in ("fit", *COMMANDS):
        assert f"$ lightning-practices {command}" in page
    assert all(command in page for command in LIGHTNING)
    listed = re.search(r"recipe list\n((?:\w+ +.*\n)+?)\$", page)
    assert listed is not None
    assert [line.split()[0] for line in listed[1].splitlines()] == recipe_names()
