"""``check``: the advisor, from the command line."""

import argparse
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from rich.console import Console

from lightning_practices.advisor import advise, all_rules
from lightning_practices.advisor.rules import rules_matching
from lightning_practices.cli._lightning import CLASSES, PracticesCLI
from lightning_practices.cli._main import UsageError
from lightning_practices.files import write_file

MORE = "the options of `fit`"  # which are passed on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.usage = "lightning-practices check [MODULE [DATA]] [options]"
    parser.epilog = (
        "MODULE and DATA are classes: package.Class, or file.py:Class. DATA is a"
        " LightningDataModule; without it, the module has the dataloaders. All other options are"
        " those of `fit`, such as --config fit.yaml, --model.lr=1e-3 or --trainer.max_epochs=10."
        " Exit status: 0 without errors, 1 with errors, 2 for a wrong call."
    )
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE",
                        help="write JSON to a file, or print it in place of the table")  # fmt: skip
    parser.add_argument("--html", metavar="FILE", help="write the report as HTML")
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="ID",
        help="leave out a rule, such as LP201, or a group, such as LP7",
    )  # fmt: skip
    parser.add_argument("--select", action="append", default=[], metavar="ID",
                        help="ask only this rule or group")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Advise, show the report, and return 1 if it has errors."""
    try:
        for name, ids in (("--ignore", arguments.ignore), ("--select", arguments.select)):
            rules_matching(all_rules(), name, ids)
    except ValueError as error:
        raise UsageError(str(error)) from error
    cli = PracticesCLI(_named(arguments.more), run=False, seed_everything_default=False)
    report = advise(
        cli.model, cli.datamodule, cli.trainer, ignore=arguments.ignore, select=arguments.select
    )
    if arguments.html:
        report.write_html(arguments.html)
    if arguments.json == "-":
        print(report.to_json())
    else:
        Console().print(report)
        if arguments.json:
            write_file(Path(arguments.json), report.to_json())
    return report.exit_code


def _named(argv: Sequence[str]) -> list[str]:
    """Return arguments with the leading classes as values of ``--model`` and ``--data``."""
    leading = list(takewhile(lambda one: not one.startswith("-"), argv))
    if len(leading) > len(CLASSES):
        raise UsageError(f"got {leading}: there are at most two classes, MODULE and DATA")
    named = [f"{option}={one}" for option, one in zip(CLASSES, leading, strict=False)]
    return [*named, *argv[len(leading) :]]
