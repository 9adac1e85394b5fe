"""Measure one case: check every provider, time all of them in turns, and write a row for each."""

import dataclasses
import functools
import math
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.cases import Case, empty_host_seconds, make_calls, saved_bytes
from benchmarks.correctness import OUR_FACTOR, PEER_FACTOR, Float64, check_dropout
from benchmarks.kernel_rows import CRASHED, TIMEOUT, blank_row, bound, figures, with_ratios
from benchmarks.ops import DTYPES
from benchmarks.providers import AUTOTUNED, COMPILED, Function, Inputs, Provider
from benchmarks.results import Results, version_of
from benchmarks.rows import COPY, EAGER, OURS, Row, first_line
from benchmarks.time_limit import time_limit
from benchmarks.timers import Call, Prepared, Timer
from lightning_practices.timing import Budget, Clock, Lap, interleave

# Bytes that the calls of a lap move: several times the cache, and long compared with a launch.
_LAP_BYTES = 1 << 30
_LEAST_SETS, _MOST_SETS = 4, 64
_CPU_SETS = 2


class GpuLostError(RuntimeError):
    """A provider broke the GPU's context: nothing can run on the GPU in this process any more."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The scope of a run, and its time limits.

    Attributes:
        peers: Names of the providers besides ours; ``None`` for all that suit the machine.
        quick: Whether to leave out providers that take long.
        budget: Time for the timed rounds of one case and direction.
        preparation_seconds: Time limit for compiling and tuning one provider for one case.
        deadline: Time by the clock of the race after which no further case is started.
    """

    peers: tuple[str, ...] | None = None
    quick: bool = True
    budget: Budget = dataclasses.field(default_factory=lambda: Budget(0.4))
    preparation_seconds: float = 60.0
    deadline: float = math.inf


@dataclasses.dataclass
class _Contender:
    """A provider in one case.

    Attributes:
        provider: The provider.
        row: The fields of the provider's row so far.
        function: The provider's function, if it has passed the check.
        sets: The inputs, one tuple for each call of a lap.
        prepared: The calls in one direction, ready to be timed.
    """

    provider: Provider
    row: Row
    function: Function | None = None
    sets: Sequence[Inputs] = ()
    prepared: Prepared | None = None

    def fail(self, status: str, reason: str) -> None:
        """Exclude the provider from the race, and record why."""
        self.row |= {"status": status, "reason": reason}
        self.function = self.prepared = None


class Race:
    """Measures cases and adds their rows. All rows of a direction are added at once.

    Args:
        timer: The timer of the device.
        results: The results to which rows are added. Rows that exist are not measured again.
        settings: The scope of the run, and its time limits.
        bandwidth: Bytes per second that a large copy moves in this run.
        clock: Function that returns the time in seconds, for the budget and the deadline.
    """

    def __init__(
        self, timer: Timer, results: Results, settings: Settings, bandwidth: float,
        clock: Clock = time.monotonic,
    ) -> None:  # fmt: skip
        self._timer, self._results, self._settings = timer, results, settings
        self._bandwidth, self._clock = bandwidth, clock
        self._empty_host_seconds = empty_host_seconds(timer)

    def run(self, case: Case) -> None:
        """Measure the rows that are missing for ``case``.

        Raises:
            GpuLostError: If a provider broke the GPU. Its rows record this.
        """
        todo = [d for d in case.op.directions if self._lacking(case, d)]
        if not todo:
            return
        if self._clock() > self._settings.deadline:
            for direction in todo:
                for provider in self._lacking(case, direction):
                    contender = self._contender(case, provider)
                    contender.fail(TIMEOUT, "the run's time was up")
                    self._record(case, direction, contender)
            return
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # beyond its recompilation limit dynamo silently runs eagerly
        torch.manual_seed(0)
        sets, grads, contenders = self._enter_all(case, self._providers(case))
        for direction in todo:
            racing = [dataclasses.replace(c, row=dict(c.row)) for c in contenders]
            rows = self._measure(case, direction, racing, grads, len(sets))
            self._results.replace(case.key(direction=direction), rows)

    def _providers(self, case: Case) -> list[Provider]:
        """Return the chosen providers and those with rows, which are all timed together."""
        peers = self._settings.peers
        known = {row["provider"] for row in self._results.find(**case.key())}
        return [
            provider
            for provider in case.op.providers
            if peers is None or provider.name in (OURS, *peers) or provider.name in known
        ]

    def _lacking(self, case: Case, direction: str) -> list[Provider]:
        rows = self._results.find(**case.key(direction=direction))
        done = {row["provider"] for row in rows if row["status"] != TIMEOUT}
        return [p for p in self._providers(case) if p.name not in done]

    def _contender(self, case: Case, provider: Provider) -> _Contender:
        version = version_of(provider.name)
        identity = {**case.key(provider=provider.name), "version": version, "status": "ok"}
        return _Contender(provider, {**blank_row(), **identity, "dims": list(case.shape.dims)})

    def _record(self, case: Case, direction: str, contender: _Contender) -> None:
        key = case.key(direction=direction, provider=contender.provider.name)
        self._results.replace(key, [{**contender.row, **key}])

    def _enter_all(
        self, case: Case, providers: Sequence[Provider]
    ) -> tuple[list[Inputs], list[Tensor], list[_Contender]]:
        """Draw the inputs, and check each provider with the first set."""
        sets: list[Inputs] = []
        grads: list[Tensor] = []
        contenders = [self._contender(case, provider) for provider in providers]
        reference: Float64 | None = None
        op = case.op
        try:
            with self._timer.context():
                sets = [case.draw(self._timer.device) for _ in range(self._count(case, providers))]
                y = op.eager(*op.prepare(sets[0])).detach()
                grads = [torch.randn_like(y) for _ in sets]
                if op.drop_rate is None:
                    reference = Float64(op.eager, sets[0], grads[0], op.prepare, op.activation)
                self._timer.synchronize()
        except Exception as error:
            # A package that only the reference needs may be missing: that is no failure of ours.
            status = "skipped" if isinstance(error, ModuleNotFoundError) else "failed"
            for contender in contenders:
                contender.fail(status, f"its reference failed: {first_line(error)}")
            eager = next(provider for provider in op.providers if provider.name == EAGER)
            self._raise_if_lost(case, self._contender(case, eager), error)
            return sets, grads, contenders
        for contender in contenders:
            with self._timer.context():
                self._enter(case, contender, sets, grads, reference)
        return sets, grads, contenders

    def _count(self, case: Case, providers: Sequence[Provider]) -> int:
        """Return the number of sets of tensors in a lap."""
        if self._timer.device.type == "cpu":
            return _CPU_SETS
        wanted = math.ceil(_LAP_BYTES / case.floor_bytes("forward"))
        # The number of tensors of x's size: inputs and copies, and each provider's result and
        # saved tensors.
        size = math.prod(case.shape.dims) * DTYPES[case.dtype].itemsize * (7 + 3 * len(providers))
        room = self._timer.free_bytes() // (2 * size)
        return max(1, min(max(wanted, _LEAST_SETS), _MOST_SETS, room))

    def _enter(
        self,
        case: Case,
        contender: _Contender,
        sets: Sequence[Inputs],
        grads: Sequence[Tensor],
        reference: Float64 | None,
    ) -> None:
        """Make the function of ``contender`` and check it, or record why it is not timed."""
        provider, settings, op = contender.provider, self._settings, case.op
        crashes = self._results.find(**case.key(provider=provider.name, status=CRASHED))
        if crashes:
            return contender.fail(CRASHED, crashes[0]["reason"])
        if (reason := reason_to_skip(case, provider, self._timer.device, settings)) is not None:
            return contender.fail("skipped", reason)
        left = settings.deadline - self._clock()
        try:
            with time_limit(min(settings.preparation_seconds, max(1.0, left))):
                function = provider.make()
                own = [provider.prepare(inputs) for inputs in sets]
                if reference is None:
                    assert op.drop_rate is not None
                    verdict = check_dropout(function, own[0], grads[0], op.drop_rate, op.block_size)
                else:
                    factor = OUR_FACTOR if provider.name == OURS else PEER_FACTOR
                    verdict = reference.check(function, own[0], grads[0], factor)
                contender.row["saved_bytes"] = saved_bytes(function, own[0])
            self._timer.synchronize()
        except ModuleNotFoundError as error:
            contender.fail("missing", first_line(error))
        except TimeoutError as error:
            cut_short = left < settings.preparation_seconds
            contender.fail(TIMEOUT if cut_short else "failed", f"preparing it {error}")
            self._raise_if_lost(case, contender, error)
        except Exception as error:
            contender.fail("failed", first_line(error))
            self._raise_if_lost(case, contender, error)
        else:
            contender.function, contender.sets = function, own
            contender.row |= {"error": verdict.error, "allowed_error": verdict.allowed}
            if verdict.reason is not None:
                contender.fail("wrong", verdict.reason)
        return None

    def _raise_if_lost(self, case: Case, contender: _Contender, error: Exception) -> None:
        """Raise an error if a failed call also broke the GPU, and record that."""
        try:
            self._timer.synchronize()
        except Exception as lost:
            reason = f"broke the GPU's context: {first_line(error)}"
            contender.fail(CRASHED, reason)
            name = contender.provider.name
            for direction in case.op.directions:
                if not self._results.find(**case.key(direction=direction, provider=name)):
                    self._record(case, direction, contender)
            raise GpuLostError(f"{name} {reason}") from lost

    def _measure(
        self, case: Case, direction: str, contenders: list[_Contender], grads: Sequence[Tensor],
        count: int,
    ) -> list[Row]:  # fmt: skip
        """Time the contenders in turns, and return a row for each."""
        for contender in contenders:
            self._prepare(case, direction, contender, grads)
        laps = {c.provider.name: c.prepared.lap for c in contenders if c.prepared is not None}
        if laps and (lap := self._copy_lap(case, direction, count)) is not None:
            laps[COPY] = lap
        samples, errors = interleave(laps, self._settings.budget, self._clock)
        for contender in contenders:
            if (error := errors.get(contender.provider.name)) is not None:
                contender.fail("failed", first_line(error))
                self._raise_if_lost(case, contender, error)
        moved = case.floor_bytes(direction)
        common: Row = {
            "direction": direction, "bytes": moved, "sets": count,
            "copy_gbytes_per_s": self._bandwidth / 1e9,
        }  # fmt: skip
        if COPY in samples:
            common["copy_us"] = statistics.median(samples[COPY]) * 1e6
            common["bound"] = bound(moved, common["copy_us"], self._bandwidth)
        for contender in contenders:
            contender.row |= common
            if contender.prepared is not None:
                contender.row |= figures(contender.row, samples[contender.provider.name])
        return with_ratios([contender.row for contender in contenders])

    def _copy_lap(self, case: Case, direction: str, count: int) -> Lap | None:
        """Return a lap of copies that move the same bytes; ``None`` if memory is too small."""
        try:
            with self._timer.context():
                calls = copies(case.floor_bytes(direction), count, self._timer.device)
            return self._timer.prepare(calls, case.op.capture).lap
        except torch.OutOfMemoryError:
            return None

    def _prepare(
        self, case: Case, direction: str, contender: _Contender, grads: Sequence[Tensor]
    ) -> None:
        """Prepare the timed calls of ``contender``. Measure its memory and the host's time."""
        if contender.function is None:
            return
        timer = self._timer
        try:
            with timer.context():
                calls = make_calls(contender.function, contender.sets, grads, direction)
            prepared = timer.prepare(calls, case.op.capture)
            host, peak = timer.host_seconds(calls[0]), timer.peak_bytes(calls[0])
        except Exception as error:
            contender.fail("failed", f"{direction}: {first_line(error)}")
            self._raise_if_lost(case, contender, error)
            return
        contender.prepared = prepared
        contender.row |= {"timer": prepared.timer, "reason": prepared.note}
        if peak is not None:
            contender.row["peak_mib"] = peak / 2**20
        empty = self._empty_host_seconds[direction]
        if host is not None and empty is not None:
            contender.row |= {"host_us": host * 1e6, "host_us_over_empty": (host - empty) * 1e6}


def copies(moved: int, count: int, device: torch.device) -> list[Call]:
    """Return ``count`` copies that move ``moved`` bytes each, all between different tensors."""
    words = max(1, moved // 8)  # a word has 4 bytes, which are read and written
    return [
        functools.partial(
            torch.empty(words, dtype=torch.int32, device=device).copy_,
            torch.empty(words, dtype=torch.int32, device=device).random_(),
        )
        for _ in range(count)
    ]


def reason_to_skip(
    case: Case, provider: Provider, device: torch.device, settings: Settings
) -> str | None:
    """Return why ``provider`` is left out of ``case``, or ``None`` if it takes part."""
    on_cpu = device.type == "cpu"
    if on_cpu and provider.needs_gpu:
        return "needs a GPU"
    if settings.peers is not None:
        return None  # the user has named it
    if on_cpu and provider.name in COMPILED:
        return "compiled on a GPU only, unless named in --peers"
    if provider.name == AUTOTUNED and settings.quick and not case.shape.autotune:
        return "tuned on few shapes in a quick run, unless named in --peers"
    return None
