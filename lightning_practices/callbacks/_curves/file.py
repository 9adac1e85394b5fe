"""Renders the picture of learning curves as the content of a file."""

import html
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning_practices.callbacks._curves.series import EPOCH, Point, Series

if TYPE_CHECKING:  # an optional dependency
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf", ".html")

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 1200px; margin: 2em auto; padding: 0 1em; }}
svg {{ width: 100%; height: auto; }}
table {{ border-collapse: collapse; margin-top: 1.5em; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: .25em 1.2em .25em 0; border-bottom: 1px solid #e3e3e3; }}
th:first-child, td:first-child {{ text-align: left; }}
td small {{ color: #777; }}
</style>
</head>
<body>
{picture}
<table>
<thead>
<tr><th>value</th><th>last</th><th>lowest</th><th>highest</th><th>not finite</th></tr>
</thead>
<tbody>
{rows}
</tbody>
</table>
</body>
</html>
"""


def rendered(figure: "Figure", series: Mapping[str, Series], title: str, suffix: str) -> bytes:
    """Return the content of a file in the format of ``suffix``."""
    if suffix != ".html":
        return _saved(figure, suffix)
    svg = _saved(figure, ".svg").decode()
    rows = [_row(name, one) for name, one in series.items() if name != EPOCH]
    page = _PAGE.format(
        title=html.escape(title), picture=svg[svg.index("<svg") :], rows="\n".join(rows)
    )
    return page.encode()


def _saved(figure: "Figure", suffix: str) -> bytes:
    made = io.BytesIO()
    # Without dates, so that the same curves make the same file.
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    figure.savefig(made, format=suffix[1:], metadata=dates.get(suffix))
    return made.getvalue()


def _row(name: str, one: Series) -> str:
    cells = "".join(f"<td>{_cell(point)}</td>" for point in (one.last, one.lowest, one.highest))
    return f"<tr><td>{html.escape(name)}</td>{cells}<td>{one.not_finite or ''}</td></tr>"


def _cell(point: Point | None) -> str:
    return "" if point is None else f"{point.value:.6g} <small>at {point.step}</small>"
