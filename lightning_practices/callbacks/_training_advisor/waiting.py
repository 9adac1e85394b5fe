"""The time in which training waits for data."""

import time
from collections import deque
from statistics import median

_KEPT = 200  # steps
_LEAST = 20
_SHORT = 0.002  # seconds; a wait below is not worth a process


class Waiting:
    """Measures the time from the end of a step to the next batch, and from batch to batch.

    Without a wait for the device the first time counts alone where the device has nothing left to
    do: on the CPU at each step, on other devices after a look.
    """

    def __init__(self) -> None:
        self._periods: deque[float] = deque(maxlen=_KEPT)
        self._waits: deque[float] = deque(maxlen=_KEPT)
        self._begun: float | None = None
        self._ended: float | None = None

    def begin(self) -> None:
        """Note that a batch is there."""
        now = time.perf_counter()
        if self._begun is not None:
            self._periods.append(now - self._begun)
        if self._ended is not None:
            self._waits.append(now - self._ended)
        self._begun, self._ended = now, None

    def end(self, *, is_idle: bool) -> None:
        """Note that a step is over; ``is_idle`` says that the device has nothing left to do."""
        self._ended = time.perf_counter() if is_idle else None

    def interrupt(self) -> None:
        """Forget the step before, as something else has run since."""
        self._begun = self._ended = None

    @property
    def share(self) -> float | None:
        """The usual wait by the usual period; ``None`` if it is short or unknown."""
        if len(self._waits) < _LEAST or not self._periods:
            return None
        wait = median(self._waits)
        return wait / max(median(self._periods), wait) if wait > _SHORT else 0.0
