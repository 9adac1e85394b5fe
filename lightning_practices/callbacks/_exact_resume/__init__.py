"""Resuming from a checkpoint, in mid-epoch too, exactly where the interrupted fit was.

- ``exact_resume``: the callback, which saves and restores positions and random states.
- ``loaders``: the training data of a fit, whose epoch can start at any batch.
- ``loader``: one loader of it.
- ``indices``: the indices of a loader's batches, each with the seed of its worker process.
- ``inexact``: why the rest of an epoch may be trained otherwise.
- ``moments``: the random states of a moment of a fit.
- ``plateau``: the steps of ``ReduceLROnPlateau`` in a resumed epoch.
- ``progress``: how far a fit is within an epoch.
- ``reasons``: what can't be resumed exactly of a loader, and the remedy.
"""

from lightning_practices.callbacks._exact_resume.exact_resume import ExactResume
from lightning_practices.callbacks._exact_resume.loaders import ResumableSource

__all__ = ["ExactResume", "ResumableSource"]
