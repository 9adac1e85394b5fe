"""What the tests of the kernels' harness share: an op of their own."""

from collections.abc import Callable, Iterator

import pytest

from benchmarks import report
from benchmarks.providers import PROVIDERS, Provider
from benchmarks.shapes import OPS
from tests.benchmarks import fake_op


@pytest.fixture
def with_fake_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the fake op, and draw no reports."""
    monkeypatch.setitem(OPS, fake_op.NAME, fake_op.OP)
    monkeypatch.setattr(report, "write", fake_op.write_nothing)


@pytest.fixture
def take() -> Iterator[Callable[..., None]]:
    """Yield what gives the fake op its providers."""
    before = list(PROVIDERS)

    def take(*providers: Provider) -> None:
        PROVIDERS[:] = [*before, *providers]

    yield take
    PROVIDERS[:] = before
