"""The documents, and how the code in them is run.

All code of a page runs in one namespace, in the order of the page, in this process: a process for
each block would take minutes. CONTRIBUTING.md says how blocks are marked.
"""

import sys
from pathlib import Path
from types import ModuleType
from unittest import SkipTest

import pytest
from sybil import Document
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser

from tests.docs.commands import check_commands
from tests.docs.configs import check_config

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"))
)


def parsed(page: Path) -> Document:
    """Return a page with its blocks, in the order of the page."""
    return Document.parse(
        str(page),
        PythonCodeBlockParser(),
        CodeBlockParser("yaml", check_config),
        CodeBlockParser("sh", check_commands),
        SkipParser(),
    )


def run(page: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run a page, and return the reasons of the blocks that are not run.

    The page's names are those of the module ``__main__``, as in a script, so that its classes can
    be pickled.
    """
    document = parsed(page)
    module = ModuleType("__main__")
    document.namespace = vars(module)
    monkeypatch.setitem(sys.modules, "__main__", module)
    reasons = []
    for example in document.examples():
        try:
            example.evaluate()
        except SkipTest as reason:
            reasons.append(str(reason))
    return reasons
