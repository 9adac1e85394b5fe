"""``gpu-check``: run tests and benchmarks on a GPU that is available for a few minutes.

Each step is a process group with its own time limit. If a step fails or hangs, the other steps
still run, and the files that it has written are kept.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from benchmarks import report, screen
from benchmarks.options import positive
from benchmarks.results import Results, describe_environment
from benchmarks.rows import cell
from lightning_practices.files import replacing, write_file
from lightning_practices.timing import Clock

ROOT = Path(__file__).parents[1]
Status = Literal["passed", "failed", "timed out", "no time left", "not possible"]

PEERS = {
    "torchvision": "torchvision",
    "timm": "timm",
    "liger-kernel": "liger_kernel",
    "quack-kernels": "quack",
    "flag-gems": "flag_gems",
}
_LOG_BYTES = 200_000  # bytes at the end of a log that are kept
_GRACE_SECONDS = 5.0  # between the interrupt of a step and its kill
_POLL_SECONDS = 0.2
_FINISH_SECONDS = 10.0  # reserved for the summary
_LEAST_SECONDS = 5.0  # a step with less time than this is not started


@dataclasses.dataclass(frozen=True)
class Step:
    """A command and its share of the time.

    Attributes:
        name: Name of the step in the summary.
        command: The program and its arguments. ``{out}`` stands for a folder for the step's files,
            ``{minutes}`` for four fifths of its time limit.
        weight: Share of the remaining time, relative to the weights of the later steps.
        log: Name of the log to which the output is appended.
        keeps: Names of the files in ``{out}`` to keep.
        needs: Module that the step needs; ``None`` if it needs none.
    """

    name: str
    command: tuple[str, ...]
    weight: float
    log: str
    keeps: tuple[str, ...] = ()
    needs: str | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a step ended.

    Attributes:
        name: Name of the step.
        status: ``"passed"`` if the exit status is 0.
        exit_status: Exit status of the step; ``None`` if it was killed or not started.
        seconds: Duration of the step.
        limit: Time limit of the step in seconds.
        note: Last line of the output, or why the step was not started.
    """

    name: str
    status: Status
    exit_status: int | None
    seconds: float
    limit: float
    note: str


def steps() -> list[Step]:
    """Return the steps, the most important first."""
    pytest = (
        sys.executable, "-m", "pytest", "-m", "gpu or kernel", "-q", "-rfE", "--tb=short",
        "--durations=10", "-p", "no:cacheprovider",
    )  # fmt: skip
    benchmarks = (sys.executable, "-m", "benchmarks")
    out = ("--out", "{out}")
    return [
        Step("kernel tests", (*pytest, "tests/kernels"), 4, "kernel_tests.log", needs="pytest"),
        Step(
            "other gpu tests", (*pytest, "tests", "--ignore=tests/kernels"), 2, "other_tests.log",
            needs="pytest",
        ),
        Step(
            "static", (*benchmarks, "static", "--targets", _target(), *out), 2, "benchmarks.log",
            keeps=("static.json",),
        ),
        Step(
            "kernels",
            (*benchmarks, "kernels", "--shapes", "quick", "--minutes", "{minutes}", *out),
            6, "benchmarks.log", keeps=("kernels.json", "kernels.md"),
        ),
        Step(
            "fit", (*benchmarks, "fit", "--short", *out), 3, "benchmarks.log", keeps=("fit.json",)
        ),
    ]  # fmt: skip


def _target() -> str:
    """Return the target of ``static`` whose compute capability is nearest to this GPU's."""
    import torch

    major, _ = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    return str(10 * min(max(major, 8), 10))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``gpu-check``."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/gpu-check"),
        metavar="DIR",
        help="folder of summary.json, logs and results, 8 files in all (default: %(default)s)",
    )
    parser.add_argument(
        "--minutes",
        type=positive,
        default=9.0,
        help="for all steps together (default: %(default)s)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Run all steps; return 0 if all passed, 1 if not, 2 without a GPU."""
    import torch

    if not torch.cuda.is_available():
        print("gpu-check needs a GPU that torch can use, and there is none", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the step, print the summary
    return check(steps(), arguments.out, arguments.minutes * 60)


def check(todo: Sequence[Step], out: Path, seconds: float, clock: Clock = time.monotonic) -> int:
    """Run ``todo`` within ``seconds``, keep the files in ``out``, and print a summary last."""
    out.mkdir(parents=True, exist_ok=True)
    for name in {"summary.json", *(name for step in todo for name in (step.log, *step.keeps))}:
        (out / name).unlink(missing_ok=True)  # a file of an earlier check
    deadline = clock() + seconds - _FINISH_SECONDS
    outcomes: list[Outcome] = []
    environment, absent = describe_environment(), absent_peers()
    print(f"peers absent: {', '.join(absent) or 'none'}", flush=True)
    try:
        for i, step in enumerate(todo):
            left = deadline - clock()
            limit = left * step.weight / sum(later.weight for later in todo[i:])
            print(f"{step.name}: at most {limit:.0f} s ...", flush=True)
            outcomes.append(_run(step, out, limit, clock))
            print(f"  {outcomes[-1].status}: {outcomes[-1].note}", flush=True)
            _save(out, environment, absent, outcomes)
    finally:
        _print_summary(out, absent, outcomes)
    return 0 if all(outcome.status == "passed" for outcome in outcomes) else 1


def absent_peers() -> list[str]:
    """Return the peers that are not installed, by their package names."""
    return [name for name, module in PEERS.items() if importlib.util.find_spec(module) is None]


def _run(step: Step, out: Path, limit: float, clock: Clock) -> Outcome:
    """Run one step for at most ``limit`` seconds, then kill its whole process group."""

    def outcome(status: Status, note: str, exit_status: int | None = None) -> Outcome:
        return Outcome(step.name, status, exit_status, clock() - start, limit, note)

    start = clock()
    if step.needs and importlib.util.find_spec(step.needs) is None:
        return outcome("not possible", f"{step.needs} is not installed")
    if limit < _LEAST_SECONDS:
        return outcome("no time left", f"{limit:.0f} s are too few")
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        work, full_log = Path(folder) / "out", Path(folder) / "log"
        work.mkdir()
        keep = functools.partial(_keep, step, work, out)
        values = {"{out}": str(work), "{minutes}": f"{0.8 * limit / 60:.2f}"}
        command = [values.get(part, part) for part in step.command]
        try:
            with full_log.open("wb") as log:
                exit_status = _run_group(command, log, lambda: clock() >= start + limit, keep)
        finally:
            keep()
            end = _end_of(full_log)
            with (out / step.log).open("a") as kept:
                kept.write(f"==== {step.name}: {' '.join(command)}\n{end}\n")
    last = ([line.strip() for line in end.splitlines() if line.strip()] or ["no output"])[-1]
    if exit_status is None:
        return outcome("timed out", last)
    return outcome("passed" if exit_status == 0 else "failed", last, exit_status)


def _run_group(
    command: Sequence[str], log: Any, is_late: Callable[[], bool], keep: Callable[[], None]
) -> int | None:
    """Return the exit status of ``command``, or ``None`` if it still runs when it ``is_late``."""
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # don't load plugins that happen to be installed
    }
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log,
        stderr=subprocess.STDOUT, start_new_session=True,
        # A shell starts its background jobs with interrupts ignored, and children inherit that.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        while not _has_ended(process):
            if is_late():
                _signal_group(process, signal.SIGINT)  # so that the step can save its results
                _await_end(process, _GRACE_SECONDS)
                return None
            _await_end(process, _POLL_SECONDS)
            keep()
    finally:  # before wait(), which frees the group's id for other processes
        _signal_group(process, signal.SIGKILL)  # kill also processes that the step left behind
        process.wait()
    return process.returncode


def _has_ended(process: "subprocess.Popen[bytes]") -> bool:
    """Return whether ``process`` has ended, without waiting for it."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, flags) is not None


def _await_end(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not _has_ended(process):
        time.sleep(0.02)


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _keep(step: Step, work: Path, out: Path) -> None:
    """Copy the files that ``step`` has written so far. Each copy is atomic."""
    for name in step.keeps:
        source, target = work / name, out / name
        if not source.exists():
            continue
        if target.exists() and target.stat().st_mtime_ns == source.stat().st_mtime_ns:
            continue
        with replacing(target) as part:
            shutil.copy2(source, part)


def _end_of(log: Path) -> str:
    """Return the last :data:`_LOG_BYTES` of ``log``."""
    size = log.stat().st_size
    with log.open("rb") as file:
        file.seek(max(0, size - _LOG_BYTES))
        text = file.read().decode(errors="replace")
    return f"[{size - _LOG_BYTES} bytes cut]\n{text}" if size > _LOG_BYTES else text


def _save(
    out: Path, environment: dict[str, Any], absent: Sequence[str], outcomes: Sequence[Outcome]
) -> None:
    content = {
        "environment": environment,
        "absent_peers": absent,
        "steps": [dataclasses.asdict(outcome) for outcome in outcomes],
    }
    write_file(out / "summary.json", json.dumps(content, indent=1) + "\n")


def _print_summary(out: Path, absent: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    """Print the failures, the kernels' figures, and at the end one line for each step."""
    console = screen.console()
    for name in ("kernel_tests.log", "other_tests.log"):
        for line in deque(_failures(out / name), maxlen=20):
            console.print(line[:300], markup=False)
    with contextlib.suppress(OSError, ValueError):
        rows = Results.load(out / "kernels.json").rows
        figures = Table(*report.SUMMARY_HEADINGS)
        for values in report.summarise(rows):
            figures.add_row(*map(cell, values))
        console.print(figures)
        for left in report.not_measured(rows)[-1:]:
            console.print(left[:3000], markup=False)
    table = Table("step", "status", "seconds", "limit", "last line")
    for outcome in outcomes:
        style = None if outcome.status == "passed" else "bold red"
        figures_of = (f"{outcome.seconds:.0f}", f"{outcome.limit:.0f}", Text(outcome.note[:90]))
        table.add_row(outcome.name, outcome.status, *figures_of, style=style)
    console.print(f"peers absent: {', '.join(absent) or 'none'}; files in {out}", markup=False)
    console.print(table)


def _failures(log: Path) -> list[str]:
    """Return the lines of pytest's output that name failed tests."""
    if not log.exists():
        return []
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
