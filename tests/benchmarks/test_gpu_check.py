"""The check for a GPU at hand, its orchestration tried on made-up steps."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as cli
from benchmarks import gpu_check
from benchmarks.gpu_check import Step, check, steps
from tests.benchmarks.planted import bad_row, kernel_row, save
from tests.processes import is_running

FAILS = "import sys; print('FAILED tests/x.py::test_y - 1 == 2'); print('1 failed'); sys.exit(1)"
# Takes no notice of interrupts, and has a child that takes none either.
HANGS = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1], "pids.json").write_text(str(child.pid))
print("half way")
time.sleep(600)
"""


def step(name: str, code: str, *arguments: str, weight: float = 1, **more: Any) -> Step:
    """Return a step that runs ``code``."""
    return Step(name, (sys.executable, "-c", code, *arguments), weight, f"{name}.log", **more)


class WaitsFor:
    """A clock that stands still until a file is there, and then jumps once.

    Args:
        file: The file.
        seconds: How far it jumps.
    """

    def __init__(self, file: Path, seconds: float) -> None:
        self.file, self.seconds = file, seconds

    def __call__(self) -> float:
        return self.seconds if self.file.exists() else 0.0


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "_FINISH_SECONDS", 0.0)
    monkeypatch.setattr(gpu_check, "_LEAST_SECONDS", 0.5)
    monkeypatch.setattr(gpu_check, "_GRACE_SECONDS", 0.5)  # for a step that takes no notice
    monkeypatch.setattr(gpu_check, "describe_environment", lambda: {"torch": torch.__version__})


def summary(out: Path) -> dict[str, Any]:
    """Return the steps of the summary by name."""
    return {row["name"]: row for row in json.loads((out / "summary.json").read_text())["steps"]}


def test_one_passes_one_fails_one_hangs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writes = "import pathlib, sys; pathlib.Path(sys.argv[1], 'a.json').write_text('[1]')"
    todo = [
        step("good", f"{writes}; print('3 passed')", "{out}", keeps=("a.json",)),
        step("bad", FAILS),
        step("stuck", HANGS, "{out}", weight=0.5, keeps=("pids.json",)),
        step("after", "print('still here')"),
    ]
    assert check(todo, tmp_path, 12, WaitsFor(tmp_path / "pids.json", 8)) == 1
    found = summary(tmp_path)
    assert [(row["status"], row["exit_status"]) for row in found.values()] == [
        ("passed", 0), ("failed", 1), ("timed out", None), ("passed", 0)
    ]  # fmt: skip
    assert [row["note"] for row in found.values()] == [
        "3 passed", "1 failed", "half way", "still here"
    ]  # fmt: skip
    assert (tmp_path / "a.json").read_text() == "[1]"  # what the earlier ones wrote
    child = int((tmp_path / "pids.json").read_text())  # written before it hung
    assert not is_running(child)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.json", "after.log", "bad.log", "good.log", "pids.json", "stuck.log", "summary.json"
    ]  # fmt: skip
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [line.split("│")[1].strip() for line in lines] == ["good", "bad", "stuck", "after"]


def test_time_that_is_not_used_goes_to_the_steps_after(tmp_path: Path) -> None:
    writes = "import pathlib, sys; pathlib.Path(sys.argv[1], 'a').write_text('')"
    first = step("a", writes, "{out}", keeps=("a",))
    clock = WaitsFor(tmp_path / "a", 4)  # seconds that the first step takes
    check([first, step("b", ""), step("c", "", weight=2)], tmp_path, 40, clock)
    found = summary(tmp_path)
    assert [row["limit"] for row in found.values()] == [10, 12, 36]
    assert [row["seconds"] for row in found.values()] == [4, 0, 0]


def test_a_step_without_time_or_module_is_not_begun(tmp_path: Path) -> None:
    todo = [
        step("lacks", "print('ran')", needs="no_such_module"),
        step("late", "print('ran')", weight=0.001),
    ]
    assert check(todo, tmp_path, 0.3, lambda: 0.0) == 1
    found = summary(tmp_path)
    assert (found["lacks"]["status"], found["lacks"]["note"]) == (
        "not possible", "no_such_module is not installed"
    )  # fmt: skip
    assert found["late"]["status"] == "no time left"


def test_what_an_ended_step_left_behind_is_ended_too(tmp_path: Path) -> None:
    leaves = (
        "import pathlib, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "pathlib.Path(sys.argv[1], 'pid').write_text(str(child.pid))"
    )
    todo = [step("leaves", leaves, "{out}", keeps=("pid",))]
    assert check(todo, tmp_path, 20, lambda: 0.0) == 0
    pid = int((tmp_path / "pid").read_text())
    while is_running(pid):  # a moment, until the signal has reached it
        time.sleep(0.02)


def test_an_interrupted_step_has_the_chance_to_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "_GRACE_SECONDS", 600.0)
    polite = (
        "import pathlib, sys, time\n"
        "try: pathlib.Path(sys.argv[1], 'begun').write_text(''); time.sleep(600)\n"
        "except KeyboardInterrupt: pathlib.Path(sys.argv[1], 'kept').write_text('finished part')"
    )
    clock = WaitsFor(tmp_path / "begun", 3)
    check([step("polite", polite, "{out}", keeps=("begun", "kept"))], tmp_path, 2, clock)
    assert summary(tmp_path)["polite"]["status"] == "timed out"
    assert (tmp_path / "kept").read_text() == "finished part"


def test_logs_are_cut_to_their_end_and_share_a_file(tmp_path: Path) -> None:
    loud = f"print('x' * 79, *['y' * 79] * {2**13}, 'the last line', sep='\\n')"
    todo = [
        Step(name, (sys.executable, "-c", code), 1, "log")
        for name, code in (("loud", loud), ("quiet", "print('nothing to tell')"))
    ]
    assert check(todo, tmp_path, 30, lambda: 0.0) == 0
    text = (tmp_path / "log").read_text()
    assert 200_000 < len(text) < 201_000
    assert "bytes cut]" in text
    assert "x" * 79 not in text.splitlines()[2:]
    assert "the last line" in text
    assert text.index("==== loud") < text.index("==== quiet") < text.index("nothing to tell\n")


def test_the_summary_shows_figures_failures_and_absent_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "PEERS", {"rich": "rich", "fancy-kernels": "no_such_module"})
    rows = [kernel_row("ours"), bad_row("fancy-kernels", "missing", "not installed")]
    save(tmp_path / "made" / "kernels.json", rows)
    copies = "import shutil, sys; shutil.copy(*sys.argv[1:])"
    made = str(tmp_path / "made" / "kernels.json")
    tests = Step("kernel tests", (sys.executable, "-c", FAILS), 1, "kernel_tests.log")
    kernels = step("kernels", copies, made, "{out}", keeps=("kernels.json",))
    check([tests, kernels], tmp_path / "out", 20, lambda: 0.0)
    out = capsys.readouterr().out
    assert "FAILED tests/x.py::test_y - 1 == 2" in out
    assert any(
        [cell.strip() for cell in line.split("│")[1:5]] == ["layer_norm", "bf16", "forward", "1"]
        for line in out.splitlines()
    )
    assert "| layer_norm | fancy-kernels | missing | not installed | 1 |" in out
    assert out.count("peers absent: fancy-kernels") == 2
    content = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert content["absent_peers"] == ["fancy-kernels"]
    assert content["environment"]["torch"] == torch.__version__


def test_a_terminated_check_ends_its_step_and_says_what_it_has(tmp_path: Path) -> None:
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom benchmarks import gpu_check as g\n"
        "from benchmarks.__main__ import main\n"
        "torch.cuda.is_available = lambda: True\n"
        "g.describe_environment = lambda: {}\n"
        "hangs = (sys.executable, '-c', sys.argv[2], '{out}')\n"
        "g.steps = lambda: [g.Step('first', (sys.executable, '-c', ''), 1, 'log'),"
        " g.Step('stuck', hangs, 1, 'log', ('pids.json',))]\n"
        "raise SystemExit(main(['gpu-check', '--out', sys.argv[1]]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), HANGS], cwd=gpu_check.ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "pids.json").exists() and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    out, error = process.communicate()
    assert process.returncode == 130
    assert f"kept what was finished in {tmp_path}" in error
    assert "first │ passed" in out
    assert not is_running(int((tmp_path / "pids.json").read_text()))


def test_it_refuses_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["gpu-check", "--out", str(tmp_path / "out")]) == 2
    assert "needs a GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_real_steps_are_commands_that_exist() -> None:
    todo = steps()
    assert [step.name for step in todo] == [
        "kernel tests", "other gpu tests", "static", "kernels", "fit"
    ]  # fmt: skip
    for real in todo:
        if "benchmarks" in real.command:
            assert real.command[1:3] == ("-m", "benchmarks")
            cli._parse([part.replace("{minutes}", "1.5") for part in real.command[3:]])
    files = {"summary.json", *(name for s in todo for name in (s.log, *s.keeps))}
    assert len(files) <= 8


def test_the_other_tests_are_those_outside_the_kernels() -> None:
    kernel_tests, others, *_ = steps()
    assert kernel_tests.command[-1] == "tests/kernels"
    assert others.command[-2:] == ("tests", "--ignore=tests/kernels")
    assert others.command[:-2] == kernel_tests.command[:-1]
    assert (gpu_check.ROOT / "tests" / "kernels").is_dir()
