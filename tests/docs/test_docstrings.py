"""The examples of the docstrings run, and each public name has one."""

import doctest
import pkgutil
from importlib import import_module
from inspect import isclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import lightning_kernels
import lightning_practices
from tests.docs.unfinished import NOT_ALONE, WITHOUT_EXAMPLE

pytestmark = pytest.mark.plain

NAMES = {"torch": torch, "nn": torch.nn}  # an example imports all other names
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
ROOMS = (
    "lightning_kernels",
    *(
        f"lightning_practices.{room.name}"
        for room in pkgutil.iter_modules(lightning_practices.__path__)
        if room.ispkg and not room.name.startswith("_")
    ),
)


def modules() -> list[str]:
    """Return the names of all modules, those without an example left out."""
    found = []
    for package in (lightning_kernels, lightning_practices):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            path = Path(module.module_finder.path) / module.name.rpartition(".")[2]  # type: ignore[union-attr]
            source = path / "__init__.py" if module.ispkg else path.with_suffix(".py")
            if ">>> " in source.read_text("utf-8"):
                found.append(module.name)
    return found


def examples(module: ModuleType) -> list[doctest.DocTest]:
    """Return the examples of a module."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [one for one in finder.find(module, globs=dict(NAMES)) if one.examples]


@pytest.mark.parametrize("name", modules())
def test_the_examples_of_a_module_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = examples(import_module(name))
    assert found
    said = [text for one in found for text in failures(one)]
    if name in NOT_ALONE:
        assert said, "runs: take it off the list"
    else:
        assert not said, "".join(said)


def failures(example: doctest.DocTest) -> list[str]:
    """Run an example, and return what went wrong."""
    torch.manual_seed(0)
    said: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(example, out=said.append)
    return said


def public_functions_and_classes() -> dict[str, Any]:
    """Return what can have an example, by its path: no aliases of types, and no constants."""
    found = {}
    for room in ROOMS:
        module = import_module(room)
        for name in module.__all__:
            thing = getattr(module, name)
            if isclass(thing) or getattr(thing, "__module__", "").startswith("lightning_"):
                found[f"{room}.{name}"] = thing
    return found


def test_each_public_name_has_an_example() -> None:
    found = public_functions_and_classes()
    without = {path for path, thing in found.items() if ">>> " not in (thing.__doc__ or "")}
    assert without - WITHOUT_EXAMPLE == set(), "give their docstrings an example"
    assert WITHOUT_EXAMPLE - without == set(), "have one: take them off the list"
