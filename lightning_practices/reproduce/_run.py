"""The runs of a table: on all cores, each kept in the file at once."""

import logging
import multiprocessing
import os
import platform
import signal
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lightning_practices.reproduce._results import Results, Run, as_json
from lightning_practices.reproduce._table import Table


def measure(
    table: Table,
    seeds: Sequence[int] = range(10),
    *,
    path: Path | None = None,
    data: Path | None = None,
    jobs: int | None = None,
    tiny: bool = False,
) -> Results:
    """Run the experiment of a table for each cell and seed.

    A run that two cells share is made once. Each run is written to the file as it ends, so that a
    call that was interrupted goes on where it stopped.

    Args:
        table: The table.
        seeds: Seeds of the runs.
        path: JSON file of the results. Its runs with the same settings aren't made again.
        data: A folder of images to run the experiment on, as torchvision's ``ImageFolder`` reads
            them.
        jobs: Processes, each with one thread. By default as many as there are cores.
        tiny: Whether to run with the table's settings for a quick trial.

    Returns:
        The results, of the earlier runs too.

    Raises:
        ValueError: If the table takes no ``data``, or the file holds other results.
    """
    if data is not None and not table.takes_data:
        raise ValueError(f"{table.name} runs only on the data that it names, not on {data}")
    results = Results(table, tiny, None if data is None else str(data), machine=_machine())
    if path is not None and path.exists():
        results.load(path)
    todo = list(_missing(results, seeds))
    with _pool(jobs, len(todo)) as pool, _progress(table, len(todo)) as advance:
        started = {pool.submit(_one, table, settings, seed): settings for settings, seed in todo}
        for future in as_completed(started):
            results.runs.append(_finished(future, started))
            if path is not None:
                results.save(path)
            advance()
    return results


def _missing(results: Results, seeds: Sequence[int]) -> Iterator[tuple[dict[str, Any], int]]:
    """Give the settings and seeds that have no run, those of all cells before the next seed."""
    cells = [(row, column) for row in results.table.rows for column in results.table.columns]
    for seed in seeds:
        given: list[dict[str, Any]] = []
        for settings in (results.settings(*cell) for cell in cells):
            if settings not in given and not results.has(settings, seed):
                given.append(settings)
                yield settings, seed


def _one(table: Table, settings: Mapping[str, Any], seed: int) -> Run:
    started = time.perf_counter()
    metrics = dict(table.experiment(seed=seed, **settings))
    return Run(as_json(settings), seed, metrics, round(time.perf_counter() - started, 2))


def _finished(future: Future[Run], started: Mapping[Future[Run], Mapping[str, Any]]) -> Run:
    try:
        return future.result()
    except BaseException as error:
        for other in started:
            other.cancel()
        error.add_note(f"It was raised by the run with the settings {dict(started[future])}.")
        raise


@contextmanager
def _pool(jobs: int | None, most: int) -> Iterator[ProcessPoolExecutor]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = max(1, min(jobs or cores or 1, most))
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_prepare)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()


def _prepare() -> None:
    """Prepare a process: one thread, and none of Lightning's messages for each fit."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's, on torch 2.12 and later


@contextmanager
def _progress(table: Table, total: int) -> Iterator[Any]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    with Progress(*columns, TextColumn("runs"), *times, disable=not total) as progress:
        task = progress.add_task(table.name, total=total)
        yield lambda: progress.advance(task)


def _machine() -> dict[str, str]:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": "cpu" if device is None else torch.get_device_module(device).get_device_name(),
    }
