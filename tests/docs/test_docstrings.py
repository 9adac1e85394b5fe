"""Every public class and function has an example in its docstring, and all examples run."""

import ast
import doctest
import importlib
import inspect
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

import lightning_kernels

pytestmark = pytest.mark.plain

_ROOMS = "nn surgery init optim schedules data ensembles callbacks plugins mixins modules advisor"
_PACKAGES = ["lightning_kernels", *(f"lightning_practices.{room}" for room in _ROOMS.split())]


def _public() -> Iterator[tuple[str, Any]]:
    for package in map(importlib.import_module, _PACKAGES):
        for name in package.__all__:
            yield f"{package.__name__}.{name}", getattr(package, name)


_NAMES = dict(_public())
_DOCUMENTED = {
    name: thing
    for name, thing in _NAMES.items()
    if inspect.isclass(thing) or inspect.isroutine(inspect.unwrap(thing))
}


def _examples(name: str) -> list[doctest.DocTest]:
    """Return the examples of a class or function and of the methods that it defines."""
    given = {"torch": torch, "nn": nn}
    return doctest.DocTestFinder().find(_DOCUMENTED[name], name, module=False, globs=given)


@pytest.fixture
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files of an example stay in a folder. Its random numbers and its settings are its own."""
    monkeypatch.chdir(tmp_path)
    policy, norms = lightning_kernels.get_kernel_policy(), lightning_kernels.get_compiled_norms()
    with isolate_rng():
        yield
    lightning_kernels.set_kernel_policy(policy)
    lightning_kernels.set_compiled_norms(norms)


@pytest.mark.parametrize("name", _DOCUMENTED)
@pytest.mark.usefixtures("_apart")
def test_the_examples_run(name: str) -> None:
    failures: list[str] = []
    for examples in _examples(name):
        doctest.DocTestRunner(verbose=False).run(examples, out=failures.append)
    assert not failures, "".join(failures)


@pytest.mark.parametrize("name", _DOCUMENTED)
def test_each_class_and_function_has_an_example(name: str) -> None:
    own, *_ = (test for test in _examples(name) if test.name == name)
    shown = [example for example in own.examples if example.want]
    assert shown, f"the docstring of {name} has no example that shows a result"


@pytest.mark.parametrize("name", sorted({*_NAMES} - {*_DOCUMENTED}))
def test_each_type_and_constant_has_a_docstring_below_it(name: str) -> None:
    package, _, own = name.rpartition(".")
    folder = Path(inspect.getfile(importlib.import_module(package))).parent
    assert any(own in _described(file) for file in folder.rglob("*.py")), f"{name}: no docstring"


def _described(file: Path) -> set[str]:
    """Return the names of a file that are assigned directly before a string."""
    body = ast.parse(file.read_text()).body
    return {
        target.id
        for assignment, after in pairwise(body)
        if isinstance(assignment, ast.Assign | ast.AnnAssign)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        for target in ast.walk(assignment)
        if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store)
    }
