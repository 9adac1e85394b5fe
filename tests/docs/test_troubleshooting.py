"""The messages that docs/troubleshooting.md explains are messages of the packages."""

import ast
import re
from functools import cache

import pytest

from tests.docs.pages import ROOT

pytestmark = pytest.mark.plain
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
TITLES = re.findall(r"^### (.*)$", PAGE, flags=re.MULTILINE)
ROWS = re.findall(r"^\| (`[^|]*`) \|", PAGE, flags=re.MULTILINE)
QUOTED = [text for line in TITLES + ROWS for text in re.findall(r"`([^`]+)`", line)]


@cache
def messages() -> str:
    """Return all texts in the sources, one a line, with a dot for what is put in."""
    texts = []
    for folder in ("lightning_practices", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [getattr(part, "value", None) for part in node.values]
                    texts.append("".join(p if isinstance(p, str) else "…" for p in parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


@pytest.mark.parametrize("text", QUOTED)
def test_a_quoted_message_is_in_the_sources(text: str) -> None:
    pattern = ".*".join(re.escape(part) for part in text.split("…"))
    assert re.search(pattern, messages()), "no error or warning says this"


def test_messages_are_quoted() -> None:
    assert len(QUOTED) > 30
