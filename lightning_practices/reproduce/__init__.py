"""The lectures' tables, measured again: experiments as data, many seeds, intervals.

A :class:`Table` names an experiment: a function that trains and returns metrics, the settings of
its rows and columns, and what the lecture says. :func:`measure` runs it and returns
:class:`Results`, which print, draw and save themselves. ``lightning-practices reproduce`` is the
command for it.

- ``tables/``: one file for each table, the experiment with its rows;
- ``_table``: what a table is; ``_run``: its runs, on all cores, resumed from a file;
- ``_results``, ``_show``, ``_draw``, ``_page``: means and intervals, printed, drawn, as Markdown;
- ``_data``, ``_fit``: the data that libraries ship, and a fit by the package's own mixins.
"""

from lightning_practices.reproduce._data import Data, digits, solar_cells
from lightning_practices.reproduce._draw import draw
from lightning_practices.reproduce._networks import efficientnet_lite0
from lightning_practices.reproduce._page import write_page
from lightning_practices.reproduce._results import Cell, Results, Run
from lightning_practices.reproduce._run import measure
from lightning_practices.reproduce._show import show
from lightning_practices.reproduce._table import Column, Table
from lightning_practices.reproduce.tables import all_tables

__all__ = [
    "Cell",
    "Column",
    "Data",
    "Results",
    "Run",
    "Table",
    "all_tables",
    "digits",
    "draw",
    "efficientnet_lite0",
    "measure",
    "show",
    "solar_cells",
    "write_page",
]
