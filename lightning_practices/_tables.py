"""Parts of rich tables, and their plain text."""

import sys
from collections.abc import Sequence
from io import BytesIO, TextIOWrapper
from shutil import get_terminal_size

from rich.console import Console, RenderableType
from rich.table import Column
from rich.text import Text

_WIDTH = 100  # columns, at most


def as_text(renderable: RenderableType) -> str:
    """Return the text that rich prints for ``renderable``, without colours.

    The text has only characters that the standard output can write: in the C locale, ASCII.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = TextIOWrapper(BytesIO(), encoding, errors="backslashreplace", newline="\n")
    width = min(_WIDTH, get_terminal_size((_WIDTH, 24)).columns)
    Console(file=text, width=width, color_system=None).print(renderable)
    text.seek(0)
    return text.read().rstrip()


def names_cell(names: Sequence[str]) -> Text:
    """Return the names of a module or parameter, one below the other."""
    return Text("\n".join(name or "(the model itself)" for name in names))


def widest(column: Column) -> int:
    """Return the number of characters of a column's longest line, its header included."""
    cells = [str(column.header), *(str(cell) for cell in column.cells)]
    return max(len(line) for cell in cells for line in cell.splitlines() or [""])
