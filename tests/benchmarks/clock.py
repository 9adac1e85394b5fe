"""A clock that is handed in: it moves only as far as the calls under test spend it."""

from collections.abc import Callable, Iterable
from typing import Any


class Clock:
    """A scripted clock. Looking at it takes next to nothing, but not nothing.

    Args:
        drift: Each second spent slows every later one by as much.
        noise: What further calls take beyond their cost, in turn and as a share of it.
    """

    def __init__(self, drift: float = 0.0, noise: Iterable[float] = ()) -> None:
        self.now = 0.0
        self._drift, self._noise = drift, iter(noise)

    def __call__(self) -> float:
        self.now += 1e-12
        return self.now

    def pass_by(self, seconds: float) -> None:
        """Let ``seconds`` pass, and the drift and the noise beside them."""
        slower = self._drift * self.now + next(self._noise, 0.0)
        self.now += seconds * (1 + slower)

    def spend(
        self, seconds: float, function: Callable[..., Any] = lambda *_: None
    ) -> Callable[..., Any]:
        """Return ``function`` at a cost of ``seconds``."""

        def call(*args: Any) -> Any:
            self.pass_by(seconds)
            return function(*args)

        return call
