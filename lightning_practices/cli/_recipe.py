"""``recipe``: list, show and run the recipes."""

import argparse
from collections.abc import Sequence

from lightning_practices.cli._main import UsageError
from lightning_practices.cli._recipe_files import card, check_recipe, recipe_file, recipe_names

MORE = "the options of `fit`"  # which are passed on by `run`
_RUN = """\
OVERRIDES are options of `fit`, such as --trainer.max_epochs=5 or --model.width=64.
After the fit the best weights are tested, if the module and the data have a test.

example:
  lightning-practices recipe run image_folder_resnet18 --data.root=photos
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be done with recipes."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="name the recipes, with a line about each")
    show = actions.add_parser("show", help="print the YAML file of a recipe, to copy and change")
    show.add_argument("name", metavar="NAME")
    run_ = actions.add_parser(
        "run", help="fit a recipe, then test the best weights", epilog=_RUN, allow_abbrev=False,
        usage="lightning-practices recipe run NAME [OVERRIDES]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    run_.add_argument("name", metavar="NAME")


def run(arguments: argparse.Namespace) -> int:
    """List, show or run."""
    if arguments.more and arguments.action != "run":
        raise UsageError(f"unrecognized arguments: {' '.join(arguments.more)}")
    if arguments.action == "list":
        return _list()
    check_recipe(arguments.name)
    if arguments.action == "show":
        print(recipe_file(arguments.name).read_text(), end="")
        return 0
    return _run(arguments.name, arguments.more)


def _list() -> int:
    names = recipe_names()
    width = max(map(len, names))
    for name in names:
        print(f"{name:{width}}  {card(name)['']}")
    return 0


def _run(name: str, overrides: Sequence[str]) -> int:
    from lightning_practices.cli._lightning import fit_and_test

    return fit_and_test(["fit", "--config", str(recipe_file(name)), *overrides])
