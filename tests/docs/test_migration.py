"""The names and arguments in docs/migration.md exist, where their library is installed."""

import ast
import re
from functools import reduce
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

import pytest

from tests.docs.pages import ROOT

pytestmark = pytest.mark.plain
TABLES = re.findall(
    r"^\|(?!-| \w+ \| here)(.*)\|$", (ROOT / "docs/migration.md").read_text("utf-8"), flags=re.M
)
CODE = [text for row in TABLES for text in re.findall(r"`([^`]+)`", row)]
LIBRARIES = ("torch", "lightning", "timm", "lightning_kernels")
ROOMS = (
    "nn", "surgery", "init", "optim", "schedules", "data", "ensembles", "callbacks", "plugins",
    "mixins",
)  # fmt: skip
NAMED = [text for text in CODE if text.partition(".")[0] in (*LIBRARIES, *ROOMS) and "." in text]


@pytest.mark.parametrize("text", NAMED)
def test_a_name_and_its_arguments_exist(text: str) -> None:
    node = ast.parse(text, mode="eval").body
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Call):  # Optimizer(...)(model)
        node = node.func
    named = ast.unparse(node.func) if isinstance(node, ast.Call) else text
    thing = found(named)
    if isinstance(node, ast.Call):
        takes = signature(thing).parameters
        if text.startswith("callbacks."):
            takes = signature(thing.__init__).parameters
        takes_any = any(one.kind == Parameter.VAR_KEYWORD for one in takes.values())
        assert takes_any or {str(one.arg) for one in node.keywords} <= takes.keys()


def found(name: str) -> Any:
    """Return what a dotted name is, from a library or from a package here."""
    first, *rest = name.split(".")
    if first in ROOMS:
        return reduce(getattr, rest, import_module(f"lightning_practices.{first}"))
    for end in range(len(rest), -1, -1):
        try:
            module = import_module(".".join([first, *rest[:end]]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, rest[end:], module)
    raise AssertionError(f"there is no {name}")


def test_calls_that_have_no_other_check_can_be_made() -> None:
    from lightning_practices import callbacks, data, mixins, schedules

    assert len(data.Augmentation(["flip", "rotation"]).per_sample) == 2
    data.augmentation("mixup", alpha=0.2, num_classes=10)
    schedules.LearningRateSchedule("plateau", divisor=10, patience=10)
    callbacks.WeightAveraging("ema", decay=0.5 ** (1 / 100))
    assert "augment" in signature(mixins.DataPractices.__init__).parameters


def test_the_tables_are_read() -> None:
    assert len(NAMED) > 80
