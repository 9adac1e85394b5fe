"""Functions called in several processes at once, each a rank of a gloo group.

Each call has processes of its own. They are forked, within milliseconds, from a server that has
imported torch and Lightning once, so no call sees what another has left behind. A process ends
when the test run does, even if the test run is killed.
"""

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_utilities.core.rank_zero import rank_zero_only

_LOOK = 2  # seconds, for the end of a process to be seen
DEADLINE = 1800  # seconds: only what hangs takes so long, on a busy machine too

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["pytest", "lightning.pytorch", "lightning_practices.mixins"])

_Ranks = list[tuple[ForkServerProcess, Connection]]


def run(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Call ``function`` in one process for each tuple of arguments; return the values by rank.

    The processes are the ranks of a gloo group. Lightning takes them for those of its launcher, so
    a ``Trainer(devices=len(arguments), strategy="ddp")`` fits on all of them. What they print, the
    calling process prints again, for pytest to capture.

    Args:
        function: A function of a module, for the processes to import.
        arguments: The arguments of each rank.

    Raises:
        RuntimeError: A rank raised or died. The other ranks are ended.
    """
    with _ranks(function, arguments) as ranks:
        pipes = [pipe for _, pipe in ranks]
        values: dict[Connection, Any] = {}
        while waiting := [pipe for pipe in pipes if pipe not in values]:
            pipe = _first_ready(waiting)
            rank = pipes.index(pipe)
            try:
                values[pipe], error = pickle.loads(pipe.recv_bytes())
            except EOFError:
                raise RuntimeError(f"rank {rank} has died: {_exit_code(ranks[rank][0])}") from None
            if error:
                # It may have lost the connection to one that has died, which is the reason then.
                for other in wait([one for one in waiting if one is not pipe], _LOOK):
                    assert isinstance(other, Connection)
                    with suppress(EOFError):
                        other.recv_bytes()
                        continue
                    dead = pipes.index(other)
                    raise RuntimeError(f"rank {dead} has died: {_exit_code(ranks[dead][0])}")
                raise RuntimeError(f"rank {rank} raised:\n{error}")
        return [values[pipe] for pipe in pipes]


def run_killed(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
    """Call ``function`` as :func:`run` does. Each rank has to :func:`kill` itself within it.

    The first rank to die takes the others with it, as a power cut would.
    """
    with _ranks(function, arguments) as ranks:
        process_of = {pipe: process for process, pipe in ranks}
        errors = []
        while process_of:
            pipe = _first_ready(list(process_of))
            process = process_of.pop(pipe)
            try:
                value, error = pickle.loads(pipe.recv_bytes())
            except EOFError:
                assert _exit_code(process) == -signal.SIGKILL
                return
            assert error, f"a rank has returned {value}"
            errors.append(error)  # it may have lost the connection to one that has died
        raise AssertionError("\n".join(["no rank has killed itself:", *errors]))


def kill(*_: Any) -> None:
    """End this process as a power cut would: no exception, no hook, no file closed."""
    os.kill(os.getpid(), signal.SIGKILL)


def is_running(process: int) -> bool:
    """Return whether a process of Linux runs; one that waits for its parent to reap it does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@contextmanager
def _ranks(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[_Ranks]:
    """Start the ranks; in the end end them, and print what they have printed."""
    ranks: _Ranks = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            for rank, given in enumerate(arguments):
                ours, theirs = _SERVER.Pipe()
                call = pickle.dumps((function, given))  # tensors by value
                process = _SERVER.Process(
                    target=_work, args=(rank, len(arguments), folder, theirs, call)
                )
                process.start()
                theirs.close()
                ranks.append((process, ours))
            yield ranks
            for process, pipe in ranks:
                pipe.close()  # all have answered: they may leave the group
                process.join(DEADLINE)
        finally:
            for process, pipe in ranks:
                process.kill()
                process.join()
                pipe.close()
            for path in sorted(folder.glob("printed by *")):
                sys.stdout.write(path.read_text(errors="replace"))


def _first_ready(pipes: list[Connection]) -> Connection:
    ready = wait(pipes, DEADLINE)
    if not ready:
        raise TimeoutError(f"no rank has answered within {DEADLINE} s")
    assert isinstance(ready[0], Connection)
    return ready[0]


def _exit_code(process: ForkServerProcess) -> int | None:
    process.join(DEADLINE)
    return process.exitcode


def _work(rank: int, count: int, folder: Path, pipe: Connection, call: bytes) -> None:
    """Be one rank: call the function, answer, and stay in the group until all have answered."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.freeze()  # collections need not look through what the server has imported
    with (folder / f"printed by {rank}").open("wb") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    os.environ.update(LOCAL_RANK=str(rank), CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=DEADLINE),
    )
    value = error = None
    try:
        function, arguments = pickle.loads(call)
        value = function(*arguments)
    except Exception:
        error = traceback.format_exc()
    sys.stdout.flush()
    pipe.send_bytes(pickle.dumps((value, error)))  # tensors by value
    with suppress(EOFError):
        pipe.recv_bytes()
    dist.destroy_process_group()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
