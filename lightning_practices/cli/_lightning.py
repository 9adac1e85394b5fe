"""``fit``, ``validate``, ``test`` and ``predict``, by LightningCLI."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from typing_extensions import override

from lightning_practices.cli._places import class_path, imported

CLASSES = ("--model", "--data")  # options whose values may be "file.py:Class"


class _Parser(LightningArgumentParser):
    """Names the nearest good key in an error about a bad one."""

    @override
    def error(self, message: str, ex: Any = None) -> Any:
        return super().error(_with_nearest(message, self), ex)


class PracticesCLI(LightningCLI):
    """Lightning's command line, for any LightningModule and LightningDataModule.

    Args:
        argv: The arguments, with the command first if it is to be run.
        **settings: Settings of :class:`lightning.pytorch.cli.LightningCLI`.
    """

    def __init__(self, argv: Sequence[str], **settings: Any) -> None:
        super().__init__(
            args=with_classes(argv), save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "lightning-practices"}, parser_class=_Parser, **settings,
        )  # fmt: skip

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Lightning's own warns that these aren't the arguments of the process, from which they are.
        self.config = parser.parse_args(args)


def run(argv: Sequence[str]) -> int:
    """Run a command of Lightning."""
    PracticesCLI(argv, seed_everything_default=0)
    return 0


def with_classes(argv: Sequence[str]) -> list[str]:
    """Return arguments with a class path in place of ``file.py:Class``."""
    found: list[str] = []
    for before, one in zip(["", *argv], argv, strict=False):
        option, equals, value = one.partition("=")
        if option in CLASSES and equals:
            one = f"{option}={class_path(value)}"
        elif before in CLASSES:
            one = class_path(one)
        found.append(one)
    return found


def _with_nearest(message: str, parser: LightningArgumentParser) -> str:
    for pattern in (r"Option '([\w.]+)' is not accepted", r"Key '([\w.]+)' is not expected"):
        for bad in re.findall(pattern, message):
            known = _options_of(message) or [action.dest for action in parser._actions]
            if near := get_close_matches(bad, known, 1):
                message = message.replace(f"'{bad}'", f"'{bad}' (did you mean '{near[0]}'?)", 1)
    return message


def _options_of(message: str) -> list[str]:
    """Return the options of the class that an error is about."""
    if (found := re.search(r"class_path '([\w.]+)'", message)) is None:
        return []
    parser = LightningArgumentParser(exit_on_error=False)
    return [str(name) for name in parser.add_class_arguments(imported(found[1]), sub_configs=True)]
