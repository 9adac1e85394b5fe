"""Processes in a gloo group, for tests of what several compute together."""

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

_COLLECTIVE_SECONDS = 60  # a process that waits in vain for the others raises
_ANSWER_SECONDS = 150  # starting and importing torch included


class Processes:
    """Processes that wait for functions to run together, started once for many tests.

    After a failure all of them are ended, so that none waits for what will not come, and others
    started for the next call.

    Args:
        count: How many, each with its rank in a gloo group of all.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._workers: list[tuple[Any, Connection]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None  # where they meet

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for _, pipe in self._workers:
            pipe.send_bytes(b"")
        for process, _ in self._workers:
            process.join(_COLLECTIVE_SECONDS)
        self._end()

    def run(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call ``function`` in each process with its own arguments, and return what each returns.

        Args:
            function: A function of a module, for the processes to import.
            arguments: For each process, from the first on; for fewer, the others do nothing.
        """
        if not self._workers:
            self._start()
        chosen = self._workers[: len(arguments)]
        try:
            for (_, pipe), given in zip(chosen, arguments, strict=True):
                pipe.send_bytes(pickle.dumps((function, given)))
            return _answers([pipe for _, pipe in chosen])
        except BaseException:
            self._end()
            raise

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        store = Path(self._folder.name, "store")
        for rank in range(self._count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(rank, self._count, store, theirs), daemon=True
            )
            process.start()
            self._workers.append((process, ours))

    def _end(self) -> None:
        for process, pipe in self._workers:
            process.kill()
            process.join()
            pipe.close()
        self._workers.clear()
        if self._folder is not None:
            self._folder.cleanup()


def _answers(pipes: list[Connection]) -> list[Any]:
    """Return what each process answers; raise at the first error, whoever else still computes."""
    values: dict[Connection, Any] = {}
    while waiting := [pipe for pipe in pipes if pipe not in values]:
        ready = [pipe for pipe in wait(waiting, _ANSWER_SECONDS) if isinstance(pipe, Connection)]
        if not ready:
            raise TimeoutError(f"no process has answered within {_ANSWER_SECONDS} s")
        for pipe in ready:
            rank = pipes.index(pipe)
            try:
                values[pipe], error = pickle.loads(pipe.recv_bytes())
            except EOFError:
                raise RuntimeError(f"process {rank} has died") from None
            if error:
                raise RuntimeError(f"process {rank} raised:\n{error}")
    return [values[pipe] for pipe in pipes]


def _work(rank: int, count: int, store: Path, pipe: Connection) -> None:
    """Do what is asked until nothing is."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=_COLLECTIVE_SECONDS),
    )
    while message := pipe.recv_bytes():
        value = error = None
        try:
            function, arguments = pickle.loads(message)
            value = function(*arguments)
        except Exception:
            error = traceback.format_exc()
        pipe.send_bytes(pickle.dumps((value, error)))  # tensors by value
    dist.destroy_process_group()
