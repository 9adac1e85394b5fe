"""Errors about the user's data and installation, which the command shows without a traceback."""

from types import ModuleType
from typing import Any


class DataError(ValueError):
    """The data or weights of a recipe are missing, or aren't as the recipe expects them."""


class MissingPackageError(ModuleNotFoundError):
    """A recipe needs a package that isn't installed."""


def sklearn_datasets(user: str) -> ModuleType | Any:
    """Return ``sklearn.datasets``.

    Args:
        user: The name of the class that needs it, for the error.

    Raises:
        MissingPackageError: If scikit-learn isn't installed.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise
        raise MissingPackageError(
            f"{user} takes its data from scikit-learn, which isn't installed:"
            " pip install 'lightning-practices[recipes]'",
            name=error.name,
        ) from error
    return datasets
