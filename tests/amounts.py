"""How many cases of a test are made."""

from collections.abc import Iterable
from typing import Any

import pytest


def few_and_many(few: Iterable[Any], many: Iterable[Any]) -> list[Any]:
    """Return the parameters of a test: those of `make test`, and those of `make test-full`."""
    return [*few, *(pytest.param(one, marks=pytest.mark.full) for one in many)]
