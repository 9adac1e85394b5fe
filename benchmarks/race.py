"""One case: every provider checked, then all of them timed in turns, and what rows that makes."""

import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.contenders import Case, Contender, empty_host_seconds, make_calls, saved_bytes
from benchmarks.correctness import OUR_FACTOR, PEER_FACTOR, Float64, check_dropout
from benchmarks.kernel_rows import (
    COPY,
    CRASHED,
    TIMEOUT,
    blank_row,
    bound,
    figures,
    outcome,
    replace,
    with_ratios,
)
from benchmarks.providers import (
    AUTOTUNED,
    COMPILED,
    OURS,
    Inputs,
    Provider,
    providers_of,
    reference_of,
)
from benchmarks.results import Results, Row
from benchmarks.shapes import DTYPES
from benchmarks.timing import (
    Budget,
    Lap,
    Timer,
    copies,
    first_line,
    interleave,
    time_limit,
)

_LAP_BYTES = 1 << 30  # moved by the calls of a lap: several times a cache, and long beside a launch
_LEAST_SETS, _MOST_SETS = 4, 64
_CPU_SETS = 2


class GpuLostError(RuntimeError):
    """A provider broke the GPU's context: nothing can run on it in this process any more."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run measures, and how long it may take.

    Attributes:
        peers: Names of the providers besides ours; ``None`` for all that suit the machine.
        quick: Whether to leave out what takes long.
        budget: For the timed rounds of one case and direction.
        preparation_seconds: Longest compiling and tuning of one provider on one case.
        deadline: When to start no further case, by ``time.monotonic``.
    """

    peers: tuple[str, ...] | None = None
    quick: bool = True
    budget: Budget = dataclasses.field(default_factory=lambda: Budget(0.4))
    preparation_seconds: float = 60.0
    deadline: float = math.inf


class Race:
    """Measures cases and adds their rows, a direction's all at once.

    Args:
        timer: The device's.
        results: Where the rows go. What they have is not measured again.
        settings: What to measure.
        bandwidth: Bytes per second that a large copy moves in this run.
    """

    def __init__(
        self, timer: Timer, results: Results, settings: Settings, bandwidth: float
    ) -> None:
        self._timer, self._results, self._settings = timer, results, settings
        self._bandwidth = bandwidth
        self._empty_host_seconds = empty_host_seconds(timer)

    def run(self, case: Case) -> None:
        """Measure what ``case`` lacks.

        Raises:
            GpuLostError: If a provider broke the GPU; its rows say so.
        """
        todo = [d for d in case.op.directions if self._lacking(case, d)]
        if not todo:
            return
        if time.monotonic() > self._settings.deadline:
            for direction in todo:
                self._add_timeouts(case, direction)
            return
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # else its limit of recompilations ends in eager, silently
        torch.manual_seed(0)
        sets, grads, contenders = self._enter_all(case, self._providers(case))
        for direction in todo:
            racing = [dataclasses.replace(contender) for contender in contenders]
            rows = self._measure(case, direction, racing, sets, grads)
            replace(self._results, case.key(direction=direction), rows)

    def _providers(self, case: Case) -> list[Provider]:
        """Return those asked for, and those that the rows already have: all race together."""
        peers = self._settings.peers
        known = {row["provider"] for row in self._results.find(**case.key())}
        return [
            p
            for p in providers_of(case.name)
            if peers is None or p.name in (OURS, *peers) or p.name in known
        ]

    def _lacking(self, case: Case, direction: str) -> list[Provider]:
        rows = self._results.find(**case.key(direction=direction))
        done = {row["provider"] for row in rows if row["status"] != TIMEOUT}
        return [p for p in self._providers(case) if p.name not in done]

    def _add_timeouts(self, case: Case, direction: str) -> None:
        for provider in self._lacking(case, direction):
            key = case.key(direction=direction, provider=provider.name)
            contender = Contender(provider, TIMEOUT, "the run's time was up")
            replace(self._results, key, [{**blank_row(), **key, **outcome(contender)}])

    def _enter_all(
        self, case: Case, providers: Sequence[Provider]
    ) -> tuple[list[Inputs], list[Tensor], list[Contender]]:
        """Draw the inputs, and check each provider on the first set of them."""
        sets: list[Inputs] = []
        grads: list[Tensor] = []
        contenders = [Contender(provider) for provider in providers]
        reference: Float64 | None = None
        eager = reference_of(case.name)
        try:
            function = eager.make()
            with self._timer.context():
                sets = [case.draw(self._timer.device) for _ in range(self._count(case, providers))]
                y = function(*sets[0]).detach()
                grads = [torch.randn_like(y) for _ in sets]
                if case.op.drop_rate is None:
                    reference = Float64(function, sets[0], grads[0])
                self._timer.synchronize()
        except Exception as error:
            for contender in contenders:
                contender.fail("failed", f"its reference did: {first_line(error)}")
            self._raise_if_lost(case, Contender(eager), error)
        for contender in contenders:
            if contender.status == "ok":
                with self._timer.context():
                    self._enter(case, contender, sets, grads, reference)
        return sets, grads, contenders

    def _count(self, case: Case, providers: Sequence[Provider]) -> int:
        """Return how many sets of tensors a lap goes through."""
        if self._timer.device.type == "cpu":
            return _CPU_SETS
        wanted = math.ceil(_LAP_BYTES / case.floor_bytes("forward"))
        # Of the size of x: inputs and copies, and for each provider what it returns and keeps.
        size = math.prod(case.shape.dims) * DTYPES[case.dtype].itemsize * (7 + 3 * len(providers))
        room = self._timer.free_bytes() // (2 * size)
        return max(1, min(max(wanted, _LEAST_SETS), _MOST_SETS, room))

    def _enter(
        self,
        case: Case,
        contender: Contender,
        sets: Sequence[Inputs],
        grads: Sequence[Tensor],
        reference: Float64 | None,
    ) -> None:
        """Make ``contender``'s function and check it, or say why it does not race."""
        provider = contender.provider
        crashes = self._results.find(**case.key(provider=provider.name, status=CRASHED))
        if crashes:
            return contender.fail(CRASHED, crashes[0]["reason"])
        device, settings = self._timer.device, self._settings
        if (reason := reason_to_skip(case, provider, device, settings)) is not None:
            return contender.fail("skipped", reason)
        left = self._settings.deadline - time.monotonic()
        try:
            with time_limit(min(self._settings.preparation_seconds, max(1.0, left))):
                function = provider.make()
                own = [provider.prepare(inputs) for inputs in sets]
                if case.op.drop_rate is not None:
                    verdict = check_dropout(
                        function, own[0], grads[0], case.op.drop_rate, case.op.block_size
                    )
                else:
                    assert reference is not None
                    factor = OUR_FACTOR if provider.name == OURS else PEER_FACTOR
                    verdict = reference.check(function, own[0], grads[0], factor)
                saved = saved_bytes(function, own[0])
            self._timer.synchronize()
        except ModuleNotFoundError as error:
            contender.fail("missing", first_line(error))
        except TimeoutError as error:
            cut_short = left < self._settings.preparation_seconds
            contender.fail(TIMEOUT if cut_short else "failed", f"preparing it {error}")
            self._raise_if_lost(case, contender, error)
        except Exception as error:
            contender.fail("failed", first_line(error))
            self._raise_if_lost(case, contender, error)
        else:
            contender.verdict = verdict
            contender.function, contender.sets, contender.saved_bytes = function, own, saved
            if verdict.reason is not None:
                contender.fail("wrong", verdict.reason)
        return None

    def _raise_if_lost(self, case: Case, contender: Contender, error: Exception) -> None:
        """Tell a call that failed from one that took the GPU with it."""
        try:
            self._timer.synchronize()
        except Exception as lost:
            reason = f"broke the GPU's context: {first_line(error)}"
            contender.fail(CRASHED, reason)
            for direction in case.op.directions:
                key = case.key(direction=direction, provider=contender.provider.name)
                if not self._results.find(**key):
                    row = {**blank_row(), **key, **outcome(contender)}
                    replace(self._results, key, [row])
            raise GpuLostError(f"{contender.provider.name} {reason}") from lost

    def _measure(
        self,
        case: Case,
        direction: str,
        contenders: list[Contender],
        sets: Sequence[Inputs],
        grads: Sequence[Tensor],
    ) -> list[Row]:
        """Time the contenders in turns, and return a row for each."""
        for contender in contenders:
            if contender.function is not None:
                self._prepare(case, direction, contender, grads)
        racing = {c.provider.name: c for c in contenders if c.timed is not None}
        laps = {name: c.timed.lap for name, c in racing.items() if c.timed is not None}
        if racing and (lap := self._copy_lap(case, direction, len(sets))) is not None:
            laps[COPY] = lap
        samples, errors = interleave(laps, self._settings.budget)
        for name, error in errors.items():
            if name in racing:
                racing[name].fail("failed", first_line(error))
                self._raise_if_lost(case, racing[name], error)
        common = {**case.key(direction=direction), "dims": list(case.shape.dims)}
        moved = case.floor_bytes(direction)
        common |= {"bytes": moved, "copy_gbytes_per_s": self._bandwidth / 1e9, "sets": len(sets)}
        if COPY in samples:
            common["copy_us"] = statistics.median(samples[COPY]) * 1e6
            common["bound"] = bound(moved, common["copy_us"], self._bandwidth)
        empty = self._empty_host_seconds[direction]
        rows = [
            {**blank_row(), **common, **outcome(c), **figures(common, c, samples, empty)}
            for c in contenders
        ]
        return with_ratios(rows)

    def _copy_lap(self, case: Case, direction: str, count: int) -> Lap | None:
        """Return the lap of copies of as many bytes; ``None`` if there is no room for them."""
        try:
            with self._timer.context():
                calls = copies(case.floor_bytes(direction), count, self._timer.device)
            return self._timer.prepare(calls, case.op.capture).lap
        except torch.OutOfMemoryError:
            return None

    def _prepare(
        self, case: Case, direction: str, contender: Contender, grads: Sequence[Tensor]
    ) -> None:
        """Make ``contender`` ready to be timed; take what is measured once."""
        assert contender.function is not None
        timer = self._timer
        try:
            with timer.context():
                calls = make_calls(contender.function, contender.sets, grads, direction)
            contender.timed = timer.prepare(calls, case.op.capture)
            contender.host_seconds = timer.host_seconds(calls[0])
            contender.peak_bytes = timer.peak_bytes(calls[0])
        except Exception as error:
            contender.fail("failed", f"{direction}: {first_line(error)}")
            self._raise_if_lost(case, contender, error)


def reason_to_skip(
    case: Case, provider: Provider, device: torch.device, settings: Settings
) -> str | None:
    """Return why ``provider`` is left out of ``case``, ``None`` if it is not."""
    on_cpu = device.type == "cpu"
    if on_cpu and provider.needs_gpu:
        return "needs a GPU"
    if settings.peers is not None:
        return None  # asked for by name
    if on_cpu and provider.name in COMPILED:
        return "compiled on a GPU only, unless named in --peers"
    if provider.name == AUTOTUNED and settings.quick and not case.shape.autotune:
        return "tuned on few shapes in a quick run, unless named in --peers"
    return None
