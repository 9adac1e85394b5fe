"""Output of the commands: a console of sufficient width, and a progress bar."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_WIDTH = 160  # columns, if the output is no terminal


def console() -> Console:
    """Return a console that is wide enough for tables."""
    screen = Console(highlight=False)
    return screen if screen.is_terminal else Console(width=_WIDTH, highlight=False)


def say(text: str) -> None:
    """Print ``text`` without markup and without breaking its lines."""
    console().print(text, markup=False, soft_wrap=True)


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show a progress bar on the error output while the context is open.

    The bar has no thread of its own, since that would take time from the measured code.

    Yields:
        A function to call with a label at the start of each of the ``total`` parts.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(
        *columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True,
        auto_refresh=False,
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=total, completed=-1)

        def begin(label: str) -> None:
            bar.update(task, description=label, advance=1, refresh=True)

        yield begin
