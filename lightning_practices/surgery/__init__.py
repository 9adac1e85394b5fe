"""Surgery: change the layers of a model in place, and say what was changed."""

from lightning_practices.surgery._accelerate import accelerate, restore
from lightning_practices.surgery._report import Replaced, Report, Skipped

__all__ = ["Replaced", "Report", "Skipped", "accelerate", "restore"]
