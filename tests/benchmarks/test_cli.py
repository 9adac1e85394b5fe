"""The command line: help without a wait, exit statuses, and what runs without a command."""

import re
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as cli
from benchmarks.results import Results

ROOT = Path(__file__).parents[2]


def test_help_names_every_command_and_imports_none() -> None:
    probe = (
        "import sys; from benchmarks.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as exit: assert exit.code == 0\n"
        "assert not {'torch', 'rich', 'matplotlib'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for name in cli.COMMANDS:
        assert f"\n    {name}" in result.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert f"python -m benchmarks {name}" in " ".join(capsys.readouterr().out.split())


def parsed(*arguments: str) -> Namespace:
    return cli._parse(arguments)[0]


@pytest.mark.parametrize("flag", ["models", "practices"])
def test_none_stands_for_no_name(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert getattr(parsed("fit", f"--{flag}", "none"), flag) == []
    assert len(getattr(parsed("fit"), flag)) > 3
    chosen = getattr(parsed("fit"), flag)[:2]
    assert getattr(parsed("fit", f"--{flag}", *chosen), flag) == chosen
    with pytest.raises(SystemExit):
        parsed("fit", f"--{flag}", "none", chosen[0])
    assert f"argument --{flag}: give 'none' alone" in capsys.readouterr().err


OPTIONS = [
    ("kernels", "ops"), ("kernels", "dtypes"), ("kernels", "peers"), ("cpu", "ops"),
    ("fit", "models"), ("fit", "variants"), ("fit", "practices"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "flag"), OPTIONS)
def test_the_names_in_the_help_can_be_copied_to_a_shell(
    command: str, flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    pattern = rf"--{flag} \w+ \[\w+ \.\.\.\] (?:[\w ]+: )?any of (.*?) \(default"
    (line,) = re.findall(pattern, said)
    names = shlex.split(line.removesuffix(", or none"))
    assert getattr(parsed(command, f"--{flag}", *names), flag) == names
    assert getattr(parsed(command), flag) in (names, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("kernels", "--seconds", "nan"),
        ("kernels", "--minutes", "-1"),
        ("gpu-check", "--minutes", "0"),
        ("surgery", "--repeats", "0"),
        ("surgery", "--size", "1.5"),
        ("compare", "a", "b", "--least", "inf"),
    ],
)
def test_a_number_that_makes_no_sense(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert arguments[-2] in said
    assert repr(arguments[-1]) in said


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("no-such",), 2, "invalid choice: 'no-such'"),
        (("--no-such",), 2, "required: COMMAND"),
        (("compare", "absent.json", "absent.json"), 2, "absent.json"),
        (("compare", "--no-such", "a", "b"), 2, "unrecognized arguments: --no-such"),
    ],
)
def test_a_wrong_command_line_exits_with_2(
    arguments: tuple[str, ...], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found: object = cli.main(arguments)
    except SystemExit as exit:
        found = exit.code
    said = capsys.readouterr()
    assert (found, said.out) == (status, "")
    assert message in said.err


def test_a_package_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.static", None)
    monkeypatch.setattr(cli, "import_module", lambda name: __import__("no_such_package"))
    assert cli.main(["static"]) == 2
    assert "static needs no_such_package, which is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("has_gpu", "commands", "said"),
    [
        (True, [["kernels", "--shapes", "quick"]], "a GPU here: running kernels --shapes quick"),
        (False, [["static"], ["cpu"]], "no GPU here: running static and cpu"),
    ],
)
def test_without_a_command_it_runs_what_it_can_and_says_so(
    has_gpu: bool,
    commands: list[list[str]],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)

    def parse(argv: list[str]) -> tuple[Namespace, Callable[[Namespace], int]]:
        ran.append(argv)
        return Namespace(), lambda arguments: len(ran)

    monkeypatch.setattr(cli, "_parse", parse)
    assert cli.main([]) == len(commands)  # the worst status
    assert ran == commands
    assert said in capsys.readouterr().out


def test_an_interrupt_ends_a_run_with_130_and_keeps_its_rows(tmp_path: Path) -> None:
    calls = ["--calls", "layer_norm bf16", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks", "static", *calls]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "static.json").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert f"interrupted: kept what was finished in {tmp_path}" in error
    assert Results.load(tmp_path / "static.json").rows
