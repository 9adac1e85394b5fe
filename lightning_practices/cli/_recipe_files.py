"""The files of the recipes, their names and their cards. Nothing of torch is imported here."""

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from lightning_practices.cli._main import UsageError

CONFIG = ("--config", "-c")  # options whose values may be the name of a recipe
_FOLDER = Path(str(files("lightning_practices"))) / "recipes"


def recipe_names() -> list[str]:
    """Return the names of all recipes, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def recipe_file(name: str) -> Path:
    """Return the file of a recipe, which may not exist."""
    return _FOLDER / f"{name}.yaml"


def check_recipe(name: str) -> None:
    """Raise UsageError, which names the nearest recipes, if there is no recipe of this name."""
    names = recipe_names()
    if name not in names:
        near = get_close_matches(name, names, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
        raise UsageError(f"there is no recipe {name!r}: {hint}")


def with_recipes(argv: Sequence[str]) -> list[str]:
    """Return arguments with the file of a recipe in place of its name."""
    return replaced_values(argv, CONFIG, _file_of)


def replaced_values(
    argv: Sequence[str], options: Sequence[str], change: Callable[[str], str]
) -> list[str]:
    """Return arguments with changed values of some options, ``--one=value`` or ``--one value``."""
    found: list[str] = []
    for before, one in zip(["", *argv], argv, strict=False):
        option, equals, value = one.partition("=")
        if equals and option in options:
            one = f"{option}={change(value)}"
        elif before in options:
            one = change(one)
        found.append(one)
    return found


def _file_of(value: str) -> str:
    path = Path(value)
    if path.exists():
        return value
    if path.suffix in (".yaml", ".yml", ".json"):
        others = [str(one) for one in path.parent.glob("*") if one.suffix == path.suffix]
        near = get_close_matches(value, others, 1)
        raise UsageError(
            f"there is no file {value}" + (f": did you mean {near[0]}?" if near else "")
        )
    if re.fullmatch(r"[\w-]+", value) is None:
        return value  # settings as text
    check_recipe(value)
    return str(recipe_file(value))


def card(name: str) -> dict[str, str]:
    """Return the card of a recipe: the comments at the head of its file.

    Returns:
        The text of each heading, such as ``"What for"``, on one line; ``""`` has the summary.
    """
    comments = re.match(r"(#.*\n)+", recipe_file(name).read_text())
    text = re.sub(r"^# ?", "", comments[0] if comments else "", flags=re.MULTILINE)
    summary, _, rest = text.partition("\n\n")
    found = {"": _line(summary.partition(": ")[2])}
    for heading, paragraph in re.findall(r"^(\w[\w -]*): (.*(?:\n +.*)*)", rest, re.MULTILINE):
        found[heading] = _line(paragraph)
    return found


def _line(text: str) -> str:
    return " ".join(text.split())
