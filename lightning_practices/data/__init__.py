"""Preprocessing of data that is fitted to the training split, and augmentation of images."""

from lightning_practices.data._augmentation import (
    Augmentation,
    AugmentationName,
    OneAugmentation,
    augmentation,
    augmented_loader,
    hard_targets,
)
from lightning_practices.data._preprocessing.compose import Compose
from lightning_practices.data._preprocessing.entries import BatchPreprocessing, OnePreprocessing
from lightning_practices.data._preprocessing.names import PreprocessingName, preprocessing
from lightning_practices.data._preprocessing.preprocessing import Preprocessing
from lightning_practices.data._preprocessing.reading import Entry, check_entry
from lightning_practices.data._preprocessing.scaling import MeanSubtraction, MinMax, Standardize
from lightning_practices.data._preprocessing.split import in_order
from lightning_practices.data._preprocessing.whiten import Whiten

__all__ = [
    "Augmentation",
    "AugmentationName",
    "BatchPreprocessing",
    "Compose",
    "Entry",
    "MeanSubtraction",
    "MinMax",
    "OneAugmentation",
    "OnePreprocessing",
    "Preprocessing",
    "PreprocessingName",
    "Standardize",
    "Whiten",
    "augmentation",
    "augmented_loader",
    "check_entry",
    "hard_targets",
    "in_order",
    "preprocessing",
]
