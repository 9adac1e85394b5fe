"""``check``: the advisor, from the command line."""

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

from lightning.pytorch.utilities.model_helpers import is_overridden
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_practices.advisor import Rule, advise, all_rules, training_rules
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
        " Rules about the plan of the fit, such as its length, are asked where the Trainer has"
        " options. Exit status: 0 without errors, 1 with errors, 2 for a wrong call."
    )
    parser.add_argument("--list", action="store_true",
                        help="list the rules, or those of --select, and check nothing")  # fmt: skip
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
    rules = all_rules() + (training_rules() if arguments.list else ())
    try:
        left_out = rules_matching(rules, "--ignore", arguments.ignore)
        selected = rules_matching(rules, "--select", arguments.select) or rules
    except ValueError as error:
        raise UsageError(str(error)) from error
    if arguments.list:
        Console().print(_table([rule for rule in selected if rule not in left_out]))
        return 0
    with _without_notes_of_the_trainer():
        cli = PracticesCLI(
            _named(arguments.more), run=False, seed_everything_default=False,
            trainer_defaults={"logger": False},
        )  # fmt: skip
    if cli.datamodule is None and not is_overridden("train_dataloader", cli.model):
        name = type(cli.model).__name__
        raise UsageError(
            f"{name} has no train_dataloader: name the class of a datamodule too, as in"
            f" lightning-practices check train.py:{name} train.py:Data"
        )
    # A Trainer that got no option is not the user's, so that nothing can be said of its plan.
    has_plan = cli.config.trainer != cli.parser.get_defaults().trainer
    trainer = cli.trainer if has_plan else None
    report = advise(
        cli.model, cli.datamodule, trainer, ignore=arguments.ignore, select=arguments.select
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


@contextmanager
def _without_notes_of_the_trainer() -> Iterator[None]:
    """Leave out which devices a fit would use, and Lightning's tips; warnings are shown."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))
    try:
        yield
    finally:
        logging.disable(before)


def _table(rules: Sequence[Rule]) -> Table:
    """Return a table of rules. Those of group 8 are asked by TrainingAdvisor, while training."""
    table = Table("rule", "severity", "practice", box=None)
    for rule in rules:
        table.add_row(rule.id, rule.severity, escape(rule.practice))
    return table


def _named(argv: Sequence[str]) -> list[str]:
    """Return arguments with the leading classes as values of ``--model`` and ``--data``."""
    leading = list(takewhile(lambda one: not one.startswith("-"), argv))
    if len(leading) > len(CLASSES):
        raise UsageError(f"got {leading}: there are at most two classes, MODULE and DATA")
    named = [f"{option}={one}" for option, one in zip(CLASSES, leading, strict=False)]
    return [*named, *argv[len(leading) :]]
