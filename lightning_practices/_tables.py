"""Convert rich tables to plain text."""

from io import StringIO

from rich.console import Console, RenderableType

_WIDTH = 100  # columns, whatever the width of the terminal


def as_text(renderable: RenderableType) -> str:
    """Return the text that rich prints for ``renderable``, without colours."""
    text = StringIO()
    Console(file=text, width=_WIDTH, color_system=None).print(renderable)
    return text.getvalue().rstrip()
