"""The command ``lightning-practices`` in the documents: its options exist."""

import itertools
import re
import shlex
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO

from sybil import Example

from lightning_practices.cli import main
from tests.docs.configs import QuietCLI

COMMAND = "lightning-practices"
OF_LIGHTNING = ("fit", "validate", "test", "predict")
OF_CLASSES = (
    "--model",
    "--data",
    "--optimizer",
    "--lr_scheduler",
)  # which take what the class does


def check_commands(example: Example) -> None:
    """Check the options of each call of the command in a block for a shell."""
    text = str(example.parsed).replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith(f"{COMMAND} "):
            check_command(shlex.split(line, comments=True)[1:])


def check_command(words: list[str]) -> None:
    """Check that a call of the command has only options that exist."""
    names = [word.partition("=")[0].rstrip("+") for word in words if word.startswith("--")]
    known = options(*itertools.takewhile(lambda word: not word.startswith("-"), words))
    for name in names:
        of_class = words[0] in OF_LIGHTNING and name.startswith(OF_CLASSES)
        inside = any(f"{one}.help" in known and name.startswith(f"{one}.") for one in known)
        assert name in known or of_class or inside, f"{COMMAND} {words[0]} has no option {name}"


@cache
def options(*words: str) -> frozenset[str]:
    """Return the options of a command, as its help shows them, or Lightning's."""
    text = StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        if words[0] in OF_LIGHTNING:
            QuietCLI(args=[words[0], "--help"])
        assert main([*words, "--help"]) == 0, f"there is no {COMMAND} {' '.join(words)}"
    return frozenset(re.findall(r"(?<![\w-])--[a-z][\w.-]*", text.getvalue()))
