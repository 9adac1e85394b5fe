"""Skipping of steps whose gradients are nan or infinite.

- ``skip_non_finite``: the callback.
- ``report``: which gradients were nan or infinite, as a table.
"""

from lightning_practices.callbacks._skip_non_finite.report import (
    NonFiniteParameter,
    NonFiniteReport,
)
from lightning_practices.callbacks._skip_non_finite.skip_non_finite import SkipNonFinite

__all__ = ["NonFiniteParameter", "NonFiniteReport", "SkipNonFinite"]
