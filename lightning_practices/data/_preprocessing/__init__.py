"""Layers that shift, scale and whiten data by statistics of the training split.

- ``preprocessing.py``: the base class: fit, apply, undo, save.
- ``scaling.py``, ``whiten.py``, ``compose.py``: the layers.
- ``names.py``: layers by name, and from the config in a checkpoint.
- ``entries.py``: the layers of several entries of a batch.
- ``moments.py``: statistics of data that arrives in pieces.
- ``layout.py``: which numbers share a statistic.
- ``split.py``: the samples of a split, whatever a loader draws of them.
- ``reading.py``: the tensors to fit, from any data; several ranks.
"""

from lightning_practices.data._preprocessing.compose import Compose
from lightning_practices.data._preprocessing.entries import (
    BatchPreprocessing,
    OnePreprocessing,
    PreprocessingSteps,
)
from lightning_practices.data._preprocessing.names import PreprocessingName, preprocessing
from lightning_practices.data._preprocessing.preprocessing import Preprocessing
from lightning_practices.data._preprocessing.scaling import MeanSubtraction, MinMax, Standardize
from lightning_practices.data._preprocessing.split import in_order
from lightning_practices.data._preprocessing.whiten import Whiten

__all__ = [
    "BatchPreprocessing",
    "Compose",
    "MeanSubtraction",
    "MinMax",
    "OnePreprocessing",
    "Preprocessing",
    "PreprocessingName",
    "PreprocessingSteps",
    "Standardize",
    "Whiten",
    "in_order",
    "preprocessing",
]
