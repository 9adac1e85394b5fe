"""``fit``, ``validate``, ``test`` and ``predict``, by LightningCLI."""

from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from lightning_practices.cli._main import USAGE, UsageError
from lightning_practices.cli._messages import (
    error_of_constructor,
    is_of_configuration,
    is_of_this_package,
    reason_of,
    short_message,
)
from lightning_practices.cli._places import class_path
from lightning_practices.cli._recipe_files import replaced_values, with_recipes
from lightning_practices.recipes import DataError, MissingPackageError

CLASSES = ("--model", "--data")  # options whose values may be "file.py:Class"
_NAME = "lightning-practices"


class _Parser(LightningArgumentParser):
    """Ends with the reason of an error alone, and the nearest name that would be right."""

    @override
    def error(self, message: str, ex: Any = None) -> Any:
        if not self.exit_on_error:  # the parser of a class, whose message is part of another one
            return super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        command = parser.prog.split()[-1]
        options = [*parser._option_string_actions]
        reason = short_message(message, options, "fit" if command == _NAME else command)
        # The only parser without a command of Lightning's is that of `check`.
        shown = "check" if command == _NAME else command
        return self.exit(USAGE, f"{_NAME} {shown}: {reason}\n")


class PracticesCLI(LightningCLI):
    """Lightning's command line, for any LightningModule and LightningDataModule.

    Args:
        argv: The arguments, with the command first if it is to be run.
        **settings: Settings of :class:`lightning.pytorch.cli.LightningCLI`.
    """

    def __init__(self, argv: Sequence[str], **settings: Any) -> None:
        super().__init__(
            args=with_classes(with_recipes(argv)), save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": _NAME}, parser_class=_Parser, **settings,
        )  # fmt: skip

    @override
    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            own = error_of_constructor(error)
            if own is not None and not is_of_this_package(own):
                raise own from None  # of the user's class: the traceback says where
            raise UsageError(reason_of(error) if own is None else str(own)) from error

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
    except (MisconfigurationException, FileNotFoundError) as error:
        if not is_of_configuration(error):
            raise  # from below the user's code: the traceback says where
        raise UsageError(str(error)) from error


def with_classes(argv: Sequence[str]) -> list[str]:
    """Return arguments with a class path in place of ``file.py:Class``.

    A class comes before its arguments, whatever the order in which they are given.
    """
    found = replaced_values(argv, CLASSES, class_path)
    for option in CLASSES:
        first = next((i for i, one in enumerate(found) if one.startswith(f"{option}.")), None)
        given = [i for i, one in enumerate(found) if one.partition("=")[0] == option]
        if first is not None and given and given[0] > first:
            count = 1 if "=" in found[given[0]] else 2
            moved = found[given[0] : given[0] + count]
            del found[given[0] : given[0] + count]
            found[first:first] = moved
    return found
