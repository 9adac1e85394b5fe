"""Options of the commands: names to choose from, and numbers within bounds."""

import argparse
import math
import shlex
from collections.abc import Sequence
from typing import Any

from typing_extensions import override

NONE = "none"


class _Names(argparse.Action):
    """Stores the chosen names; the name ``none`` alone stands for no names."""

    @override
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
        option_string: str | None = None,
    ) -> None:  # fmt: skip
        if NONE in values and len(values) > 1:
            parser.error(f"argument {option_string}: give {NONE!r} alone, or leave it out")
        setattr(namespace, self.dest, [] if values == [NONE] else values)


def add_names(
    parser: argparse.ArgumentParser, flag: str, names: Sequence[str], about: str = "", *,
    metavar: str, default: str = "all", or_none: bool = False,
) -> None:  # fmt: skip
    """Add an option that takes one or more names, which its help lists as a shell takes them.

    Args:
        parser: The parser of the command.
        flag: The option, such as ``"--ops"``.
        names: The names to choose from.
        about: What is chosen, for the help.
        metavar: What stands for one name in the help.
        default: What is chosen without the option, for the help. ``"all"`` chooses all names;
            otherwise the value is ``None``.
        or_none: Whether ``none`` is among the names, for no name at all.
    """
    start = f"{about}: " if about else ""
    end = f", or {NONE}" if or_none else ""
    parser.add_argument(
        flag, nargs="+", action=_Names, choices=[*names, *([NONE] if or_none else [])],
        default=list(names) if default == "all" else None, metavar=metavar,
        help=f"{start}any of {quoted(names)}{end} (default: {default})",
    )  # fmt: skip


def quoted(names: Sequence[str]) -> str:
    """Return names as a shell takes them, with quotes where they have blanks."""
    return " ".join(map(shlex.quote, names)).replace("%", "%%")


def positive(text: str) -> float:
    """Return a finite number above 0; the type of an option."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"has to be a finite number above 0, but got {text!r}")
    return number


def not_negative(text: str) -> float:
    """Return a finite number from 0 on; the type of an option."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"has to be a finite number from 0 on, but got {text!r}")
    return number


def whole(text: str) -> int:
    """Return a whole number from 1 on; the type of an option."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"has to be a whole number from 1 on, but got {text!r}")
    return number
