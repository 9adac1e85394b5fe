"""``fit``, ``validate``, ``test`` and ``predict``, by LightningCLI."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from lightning_practices.cli._main import UsageError
from lightning_practices.cli._places import class_path, imported
from lightning_practices.cli._recipe_files import replaced_values, with_recipes
from lightning_practices.recipes import DataError, MissingPackageError

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
            args=with_classes(with_recipes(argv)), save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "lightning-practices"}, parser_class=_Parser, **settings,
        )  # fmt: skip

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Lightning's own warns that these aren't the arguments of the process, from which they are.
        self.config = parser.parse_args(args)


def run(argv: Sequence[str]) -> int:
    """Run a command of Lightning."""
    _made(argv)
    return 0


def fit_and_test(argv: Sequence[str]) -> int:
    """Run a fit, and then the test of the best weights, if there is a test.

    Without a checkpoint, as with ``fast_dev_run``, the weights at the end of the fit are tested.
    """
    cli = _made(argv)
    data = cli.model if cli.datamodule is None else cli.datamodule
    if is_overridden("test_step", cli.model) and is_overridden("test_dataloader", data):
        saved: Any = cli.trainer.checkpoint_callback
        has_best = saved is not None and bool(saved.best_model_path)
        best = "best" if has_best else None
        cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=best)
    return 0


def _made(argv: Sequence[str]) -> PracticesCLI:
    """Return the command line after it has run."""
    if argv[1:] == ["--help", "all"]:
        argv = argv[:2]
    try:
        return PracticesCLI(argv, seed_everything_default=0)
    except (DataError, MissingPackageError) as error:
        raise UsageError(str(error)) from error


def with_classes(argv: Sequence[str]) -> list[str]:
    """Return arguments with a class path in place of ``file.py:Class``."""
    return replaced_values(argv, CLASSES, class_path)


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
