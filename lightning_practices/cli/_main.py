"""The parser of the command, and which file runs which command."""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from typing_extensions import override

# Nothing of torch is imported here, nor by a command that is only asked for its help.

LIGHTNING = {
    "fit": "train a LightningModule",
    "validate": "run its validation",
    "test": "run its test",
    "predict": "let it predict",
}
COMMANDS = {
    "recipe": "list, show and run complete trainings",
    "check": "say what is wrong with a training before it starts",
    "fuse": "list the layers of a model that fused ones could replace, and time them",
    "schedule": "draw learning rates, or write a schedule of unfreezing for a model",
    "reproduce": "measure the lectures' tables again, with many seeds",
    "bench": "measure kernels and fits against their peers, in a checkout",
    "doctor": "show versions, devices, caches, and what is missing",
}
EXAMPLES = {
    "recipe": "recipe run digits --trainer.max_epochs=5",
    "check": "check train.py:Net train.py:Data",
    "fuse": "fuse resnet50 --input 8,3,224,224 --measure",
    "schedule": "schedule lr cosine --warmup-steps 100",
    "reproduce": "reproduce preprocessing --seeds 10",
    "doctor": "doctor",
}
PASSED_ON = ("bench",)  # with all arguments, --help too
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
        return int(_run(argv))
    except UsageError as error:
        print(f"lightning-practices {argv[0]}: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(argv: Sequence[str]) -> Any:
    if argv and argv[0] in LIGHTNING:
        asks_for_help = len(argv) == 2 and argv[1] in ("-h", "--help")
        _module("recipe_files").with_recipes(argv)  # an error about them comes before torch
        return _module("lightning_help" if asks_for_help else "lightning").run(argv)
    if argv and argv[0] in PASSED_ON:
        return _module(argv[0]).run(argv[1:])
    parser = _parser(argv[0] if argv else "")
    arguments, more = parser.parse_known_args(argv)
    if more and not arguments.takes_more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    arguments.more = more
    return arguments.run(arguments)


class UsageError(Exception):
    """A wrong call, whose message is shown without a traceback."""


class _Version(argparse.Action):
    """Prints the version, which imports torch, only if it is asked for."""

    @override
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from lightning_practices import __version__

        print(__version__)
        parser.exit()


def _parser(chosen: str) -> argparse.ArgumentParser:
    """Return the parser, with the arguments of the chosen command."""
    parser = argparse.ArgumentParser(
        prog="lightning-practices",
        description="Training best practices for PyTorch Lightning.",
        epilog="example:\n  lightning-practices recipe run digits\n\n"
        "lightning-practices COMMAND --help tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version, and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text in LIGHTNING.items():
        commands.add_parser(name, help=text, add_help=False)
    for name, text in COMMANDS.items():
        description = f"{text[0].upper()}{text[1:]}."
        command = commands.add_parser(name, help=text, description=description, allow_abbrev=False)
        if name == chosen:
            module = _module(name)
            module.add_arguments(command)
            _add_example(command, EXAMPLES[name])
            command.set_defaults(run=module.run, takes_more=hasattr(module, "MORE"))
    return parser


def _add_example(command: argparse.ArgumentParser, example: str) -> None:
    text = textwrap.fill(command.epilog or "", 79)
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = f"{text}\n\nexample:\n  lightning-practices {example}".lstrip()


def _module(name: str) -> Any:
    return import_module(f"lightning_practices.cli._{name}")
