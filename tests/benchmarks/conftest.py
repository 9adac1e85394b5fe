"""An op of the tests' own, whose providers have a known cost or a known fault."""

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import report
from benchmarks.ops import OPS
from tests.benchmarks import fake_op

Take = Callable[..., None]


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Take:
    """Return a function that adds the fake op with the given providers; no reports are drawn."""
    monkeypatch.setattr(report, "write", lambda results, out: [])

    def take(**providers: Any) -> None:
        monkeypatch.setitem(OPS, fake_op.NAME, fake_op.op(**providers))

    return take
