"""``reproduce``: the lectures' tables, measured again."""

import argparse
from pathlib import Path
from typing import Any

from lightning_practices.cli._main import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="names; all tables by default")
    parser.add_argument("--list", action="store_true", help="list the tables, and run none")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each cell (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("reproduced"),
                        help="folder for results and pictures; its runs aren't made again "
                        "(%(default)s)")  # fmt: skip
    parser.add_argument("--jobs", type=int, help="processes (as many as cores)")
    parser.add_argument("--tiny", action="store_true", help="a quick trial of each experiment")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, draw and save each table."""
    from lightning_practices.reproduce import all_tables

    tables = all_tables()
    if arguments.list:
        return _list(tables)
    if unknown := [name for name in arguments.tables if name not in tables]:
        raise UsageError(f"there is no table {unknown[0]!r}: {', '.join(tables)}")
    for name in ("seeds", "jobs"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}: at least 1 is needed")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.tables or tables:
        try:
            _reproduce(tables[name], arguments)
        except (ModuleNotFoundError, ValueError) as error:
            raise UsageError(_explained(error)) from error
    return 0


def _explained(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is missing: pip install 'lightning-practices[reproduce]'"
    return str(error)


def _reproduce(table: Any, arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from lightning_practices.reproduce import draw, measure, show, write_page

    path = arguments.out / f"{table.name}.json"
    seeds = range(arguments.seeds)
    results = measure(table, seeds, path=path, jobs=arguments.jobs, tiny=arguments.tiny)
    Console().print(show(results))
    draw(results, path.with_suffix(".svg"))
    write_page(results, path.with_suffix(".md"))
    print(f"wrote {path}, its picture .svg and its page .md\n")


def _list(tables: Any) -> int:
    from rich.console import Console
    from rich.table import Table

    shown = Table("table", "what is compared", "source")
    for table in tables.values():
        shown.add_row(table.name, table.title, table.source)
    Console().print(shown)
    return 0
