"""Preprocessing of data that is fitted to the training split, and augmentation of images."""

from lightning_practices.data._augmentation import (
    Augmentation,
    AugmentationName,
    OneAugmentation,
    augmentation,
    augmented_loader,
    hard_targets,
)
from lightning_practices.data._entries import Entry, check_entry
from lightning_practices.data._preprocessing import (
    BatchPreprocessing,
    Compose,
    MeanSubtraction,
    MinMax,
    OnePreprocessing,
    Preprocessing,
    PreprocessingName,
    PreprocessingSteps,
    Standardize,
    Whiten,
    in_order,
    preprocessing,
)

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
    "PreprocessingSteps",
    "Standardize",
    "Whiten",
    "augmentation",
    "augmented_loader",
    "check_entry",
    "hard_targets",
    "in_order",
    "preprocessing",
]
