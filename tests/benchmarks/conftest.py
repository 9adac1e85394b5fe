"""One environment for all results, and an op with providers of a known cost or fault."""

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import report, results
from benchmarks.ops import OPS
from tests.benchmarks import fake_op

Take = Callable[..., None]


@pytest.fixture(scope="session")
def environment() -> dict[str, Any]:
    """Return the environment, asked for once: the checkout may change while the tests run."""
    return results.describe_environment()


@pytest.fixture(autouse=True)
def _one_environment(environment: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "describe_environment", lambda: dict(environment))


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Take:
    """Return a function that adds the fake op with the given providers; no reports are drawn."""
    monkeypatch.setattr(report, "write", lambda results, out: [])

    def take(**providers: Any) -> None:
        monkeypatch.setitem(OPS, fake_op.NAME, fake_op.op(**providers))

    return take
