"""The runs of a table: on all cores, each kept in the file at once."""

import logging
import multiprocessing
import os
import platform
import signal
import threading
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

from lightning_practices import __version__
from lightning_practices.reproduce._results import Results, Run, as_json
from lightning_practices.reproduce._table import Table

_MOST = 61  # processes, which is as many as Windows can wait for


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
    call that was interrupted goes on where it stopped. The file keeps runs of other settings, such
    as quick trials, and the results say how many they are.

    Args:
        table: The table.
        seeds: Seeds of the runs.
        path: JSON file of the results. Its runs with the same settings aren't made again.
        data: A folder of images to run the table on instead of its own data, with
            ``train/CLASS/IMAGE`` and ``val/CLASS/IMAGE``, or just ``CLASS/IMAGE``.
        jobs: Processes, each with one thread. By default as many as there are cores. A table whose
            runs need the machine alone has one process with all threads, whatever ``jobs`` is.
        tiny: Whether to run with the table's settings for a quick trial.

    Returns:
        The results, of the earlier runs too.

    Raises:
        ValueError: If the table takes no ``data``, the folder holds no images of two classes, or
            the file holds other results.
    """
    results = _of_table(table, data, tiny)
    if path is not None and path.exists():
        results.load(path)
    todo = list(_missing(results, seeds))
    try:
        _run_all(results, todo, jobs, path)
    finally:
        if path is not None and results.runs:
            results.save(path)
    return results


def _of_table(table: Table, data: Path | None, tiny: bool) -> Results:
    if data is None:
        return Results(table, tiny)
    if table.on_folder is None:
        raise ValueError(f"{table.name} runs only on the data that it names, not on {data}")
    return Results(table.on_folder, tiny, str(data.resolve()))


def _run_all(
    results: Results,
    todo: Sequence[tuple[Mapping[str, Any], int]],
    jobs: int | None,
    path: Path | None,
) -> None:
    table, machine = results.table, _machine()
    with _pool(jobs, len(todo), table.alone) as pool, _progress(table, len(todo)) as advance:
        started = {
            pool.submit(_one, table, settings, seed, machine): settings for settings, seed in todo
        }
        for future in as_completed(started):
            results.runs.append(_finished(future, started))
            if path is not None:
                results.save_runs(path)  # cells would take longer, the more runs there are
            advance()


def _missing(results: Results, seeds: Sequence[int]) -> Iterator[tuple[dict[str, Any], int]]:
    """Give the settings and seeds that have no run, those of all cells before the next seed."""
    different = results.different_settings()
    for seed in seeds:
        for settings in different:
            if not results.has(settings, seed):
                yield settings, seed


def _one(table: Table, settings: Mapping[str, Any], seed: int, machine: Mapping[str, str]) -> Run:
    started = time.perf_counter()
    metrics = dict(table.experiment(seed=seed, **settings))
    return Run(as_json(settings), seed, metrics, round(time.perf_counter() - started, 2), machine)


def _finished(future: Future[Run], started: Mapping[Future[Run], Mapping[str, Any]]) -> Run:
    try:
        return future.result()
    except BaseException as error:
        for other in started:
            other.cancel()
        error.add_note(f"It was raised by the run with the settings {dict(started[future])}.")
        raise


@contextmanager
def _pool(jobs: int | None, most: int, alone: bool) -> Iterator[ProcessPoolExecutor]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = 1 if alone else max(1, min(jobs or cores or 1, most))
    count = min(count, _MOST)
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(count, context, _prepare, (alone,))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        raise
    pool.shutdown()


def _prepare(alone: bool) -> None:
    """Prepare a process: one thread or all, and none of Lightning's messages for each fit."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    if not alone:
        torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's, on torch 2.12 and later


def _end_with_the_parent() -> None:
    """End this process once the parent is gone, as after a kill: else it waits for runs forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _progress(table: Table, total: int) -> Iterator[Any]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    with Progress(*columns, TextColumn("runs"), *times, disable=not total) as progress:
        task = progress.add_task(table.name, total=total)
        yield lambda: progress.advance(task)


def _machine() -> dict[str, str]:
    return {
        "lightning-practices": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": _device(),
    }


def _device() -> str:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        return "cpu"
    name = getattr(torch.get_device_module(device), "get_device_name", None)  # MPS has none
    return device.type if name is None else str(name())
