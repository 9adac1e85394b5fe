"""Documents each name by its public path."""

from typing import Any


def setup(app: Any) -> dict[str, bool]:
    return {"parallel_read_safe": True, "parallel_write_safe": True}
