"""The tables: a file of this package is a table, and has it as ``TABLE``."""

from importlib import import_module
from pkgutil import iter_modules

from lightning_practices.reproduce._table import Table


def all_tables() -> dict[str, Table]:
    """Return all tables by name.

    Example:
        >>> from lightning_practices.reproduce import all_tables
        >>> all_tables()["preprocessing"].reference
        'none'
    """
    modules = (import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__))
    tables = sorted((module.TABLE for module in modules), key=lambda table: table.name)
    return {table.name: table for table in tables}
