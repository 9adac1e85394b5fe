"""The parser of the command, and which file runs which command."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from lightning_practices import __version__

LIGHTNING = {
    "fit": "train a LightningModule",
    "validate": "run its validation",
    "test": "run its test",
    "predict": "let it predict",
}
COMMANDS = {
    "check": "say what is wrong with a training before it starts",
    "fuse": "list the layers of a model that fused ones could replace, and time them",
    "schedule": "draw learning rates, or write a schedule of unfreezing for a model",
    "reproduce": "measure the lectures' tables again, with many seeds",
    "doctor": "show versions, devices, caches, and what is missing",
}
USAGE = 2  # exit status of a wrong call
INTERRUPTED = 130  # 128 + SIGINT, the convention of shells


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    The status is 0 after success, 1 if the command ran and found an error, 2 if it was called
    wrongly, and 130 if it was interrupted.
    """
    argv = [*(sys.argv[1:] if argv is None else argv)]
    sys.path.insert(0, "")  # classes of the working directory, as for `python -m`
    try:
        if argv and argv[0] in LIGHTNING:
            return int(_module("lightning").run(argv))
        parser = _parser()
        arguments, more = parser.parse_known_args(argv)
        if more and not arguments.takes_more:
            parser.error(f"unrecognized arguments: {' '.join(more)}")
        arguments.more = more
        return int(arguments.run(arguments))
    except UsageError as error:
        print(f"lightning-practices {argv[0]}: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED


class UsageError(Exception):
    """A wrong call, whose message is shown without a traceback."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-practices",
        description="Training best practices for PyTorch Lightning.",
        epilog="lightning-practices COMMAND --help tells more.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text in LIGHTNING.items():
        commands.add_parser(name, help=text, add_help=False)
    for name, text in COMMANDS.items():
        description = f"{text[0].upper()}{text[1:]}."
        command = commands.add_parser(name, help=text, description=description, allow_abbrev=False)
        module = _module(name)
        module.add_arguments(command)
        command.set_defaults(run=module.run, takes_more=hasattr(module, "MORE"))
    return parser


def _module(name: str) -> Any:
    return import_module(f"lightning_practices.cli._{name}")
