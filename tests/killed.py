"""Functions in processes of their own, to be killed in the middle, and what they return if not."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

_SECONDS = 150  # starting and importing torch included
_ROOT = Path(__file__).parents[1]


def kill(*_: Any) -> None:
    """End this process as a power cut would: no exception, no hook, no file closed."""
    os.kill(os.getpid(), signal.SIGKILL)


def run(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a function in a new process and return what it returns there, by rank.

    A function that fits under DDP is called by each of the ranks that Lightning then starts.

    Args:
        function: A function of a module, for the process to import.
        *arguments: Its arguments, to be pickled.
    """
    with tempfile.TemporaryDirectory() as folder:
        code, said = _call(Path(folder), function, arguments)
        assert code == 0, said
        paths = sorted(Path(folder).glob("rank*.pkl"))
        return [pickle.loads(path.read_bytes()) for path in paths]


def run_killed(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function as :func:`run` does, which every rank of has to :func:`kill` itself in."""
    with tempfile.TemporaryDirectory() as folder:
        code, said = _call(Path(folder), function, arguments)
        assert code == -signal.SIGKILL, said
        assert not [*Path(folder).glob("rank*.pkl")], said


def _call(folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    (folder / "call.pkl").write_bytes(pickle.dumps((function, arguments)))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), environment.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.killed", str(folder)],
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=_SECONDS)  # until the last rank has closed it
        return process.returncode, said
    finally:
        with suppress(ProcessLookupError):  # ranks that a failure has left
            os.killpg(process.pid, signal.SIGKILL)


def _main(folder: Path) -> None:
    torch.set_num_threads(1)
    function, arguments = pickle.loads((folder / "call.pkl").read_bytes())
    value = function(*arguments)
    rank = 0
    if torch.distributed.is_initialized():
        rank = torch.distributed.get_rank()
        torch.distributed.destroy_process_group()  # left to the interpreter's exit, gloo may abort
    (folder / f"rank{rank}.pkl").write_bytes(pickle.dumps(value))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
