"""Recipes: complete trainings as YAML files, with the modules and data that they name.

A recipe ``NAME.yaml`` of this folder is run by ``lightning-practices recipe run NAME``, or by
``lightning-practices fit --config NAME``. The classes are examples of
:class:`~lightning_practices.mixins.TrainingPractices` and
:class:`~lightning_practices.mixins.DataPractices`, to be copied and changed.

- ``_classifier``: what all classifiers share.
- ``_digits``, ``_image_folder``, ``_tabular``, ``_sequences``, ``_text``: the data, and a network.
- ``_drop_block``: DropBlock in torchvision's ResNets.
- ``_pretrained``: weights of torchvision or of a file.
- ``_splits``, ``_errors``: splits of the data, and errors about them.
"""

from lightning_practices.recipes._classifier import Classifier
from lightning_practices.recipes._digits import DigitsClassifier, DigitsData
from lightning_practices.recipes._drop_block import add_drop_block
from lightning_practices.recipes._errors import DataError, MissingPackageError
from lightning_practices.recipes._image_folder import (
    ImageClassifier,
    ImageFolderData,
    TransferImageClassifier,
)
from lightning_practices.recipes._pretrained import load_weights
from lightning_practices.recipes._sequences import SequenceClassifier, SequenceData
from lightning_practices.recipes._tabular import TabularClassifier, TabularData
from lightning_practices.recipes._text import CausalTransformer, TextData

__all__ = [
    "CausalTransformer",
    "Classifier",
    "DataError",
    "DigitsClassifier",
    "DigitsData",
    "ImageClassifier",
    "ImageFolderData",
    "MissingPackageError",
    "SequenceClassifier",
    "SequenceData",
    "TabularClassifier",
    "TabularData",
    "TextData",
    "TransferImageClassifier",
    "add_drop_block",
    "load_weights",
]
