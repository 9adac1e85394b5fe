"""Surgery: change the layers of a model in place, and say what was changed."""

from lightning_practices.surgery._accelerate import accelerate, restore
from lightning_practices.surgery._recalibrate import recalibrate_batch_norm
from lightning_practices.surgery._report import Folded, Replaced, Report, Skipped

__all__ = [
    "Folded",
    "Replaced",
    "Report",
    "Skipped",
    "accelerate",
    "recalibrate_batch_norm",
    "restore",
]
