"""Fixtures of the fits."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def _interrupts() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)  # Lightning ignores them from the first one on
