"""``reproduce``: the lectures' tables, measured again."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from lightning_practices.cli._main import UsageError
from lightning_practices.reproduce import Table, all_tables, draw, measure, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="names; all tables by default")
    parser.add_argument("--list", action="store_true", help="list the tables, and run none")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each cell (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("reproduced"),
                        help="folder for results and pictures; its runs aren't made again "
                        "(%(default)s)")  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="FOLDER",
                        help="a folder of images, with a folder for each class")  # fmt: skip
    parser.add_argument("--jobs", type=int, help="processes (as many as cores)")
    parser.add_argument("--tiny", action="store_true", help="a quick trial of each experiment")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, draw and save each table."""
    tables = all_tables()
    if arguments.list:
        return _list(tables)
    if unknown := [name for name in arguments.tables if name not in tables]:
        raise UsageError(f"there is no table {unknown[0]!r}: {', '.join(tables)}")
    chosen = [tables[name] for name in arguments.tables or tables]
    if arguments.data is not None:
        chosen = [table for table in chosen if table.takes_data or arguments.tables]
    if arguments.seeds < 1:
        raise UsageError(f"--seeds is {arguments.seeds}: at least 1 is needed")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for table in chosen:
        try:
            _reproduce(table, arguments)
        except (ValueError, ModuleNotFoundError) as error:
            raise UsageError(str(error)) from error
    return 0


def _reproduce(table: Table, arguments: argparse.Namespace) -> None:
    path = arguments.out / f"{table.name}.json"
    results = measure(
        table,
        range(arguments.seeds),
        path=path,
        data=arguments.data,
        jobs=arguments.jobs,
        tiny=arguments.tiny,
    )
    Console().print(show(results))
    draw(results, path.with_suffix(".svg"))
    print(f"wrote {path} and {path.with_suffix('.svg')}\n")


def _list(tables: dict[str, Table]) -> int:
    shown = RichTable("table", "what is compared", "source")
    for table in tables.values():
        shown.add_row(table.name, table.title, table.source)
    Console().print(shown)
    return 0
