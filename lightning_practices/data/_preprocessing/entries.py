"""The preprocessing of several entries of a batch."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Self, get_args

from torch import Tensor

from lightning_practices._arguments import check_choice, shown
from lightning_practices.data._entries import Entry, check_entry, has_item, with_item
from lightning_practices.data._preprocessing.compose import Compose
from lightning_practices.data._preprocessing.names import (
    PreprocessingName,
    from_config,
    preprocessing,
)
from lightning_practices.data._preprocessing.preprocessing import Preprocessing
from lightning_practices.data._preprocessing.reading import tensor_of

OnePreprocessing = PreprocessingName | Preprocessing
"""A preprocessing: its name, or a layer."""

PreprocessingSteps = OnePreprocessing | Sequence[OnePreprocessing]
"""A preprocessing, or several that run one after another."""


class BatchPreprocessing:
    """Preprocessing layers for entries of a batch, such as the inputs and the targets.

    Layers that are given as objects are copied. They are moved to the device of the batches that
    they get.

    Args:
        preprocess: The name of a layer, or a layer, or a list of these, which run one after
            another, see :class:`Compose`: for the batch itself or the first item of a tuple. Or a
            mapping from entries, positions in a tuple or keys of a dict or named tuple, to such
            values.

    Attributes:
        layers: The layers by entry.

    Raises:
        TypeError: If a value is neither a name nor a layer, nor a list of these.
        ValueError: If a name is unknown, or there is no entry, or a list is empty.

    Example:
        >>> from lightning_practices.data import BatchPreprocessing
        >>> both = BatchPreprocessing({0: "standardize", 1: "min_max"})
        >>> both.fit([(torch.tensor([[1.0], [3.0]]), torch.tensor([10.0, 20.0]))])
        >>> both((torch.tensor([[5.0]]), torch.tensor([15.0])))
        (tensor([[3.]]), tensor([0.]))
        >>> both.layers[1].inverse(torch.tensor([0.5]))
        tensor([17.5000])
    """

    def __init__(self, preprocess: PreprocessingSteps | Mapping[Entry, PreprocessingSteps]) -> None:
        entries = preprocess if isinstance(preprocess, Mapping) else {0: preprocess}
        if not entries:
            raise ValueError("preprocess={} has no entry: give a name, such as 'standardize'")
        if any(isinstance(steps, list | tuple) and not steps for steps in entries.values()):
            raise ValueError(
                f"preprocess={shown(preprocess)} has an empty list: give a name, such as"
                " 'standardize', or leave it out"
            )
        self.layers: dict[Entry, Preprocessing] = {
            check_entry(entry): _layer(one) for entry, one in entries.items()
        }

    @property
    def is_fitted(self) -> bool:
        """Whether all layers have their statistics."""
        return all(layer.is_fitted for layer in self.layers.values())

    def fit(self, data: Any) -> None:
        """Fit all layers, see :meth:`Preprocessing.fit`; each reads the data."""
        for entry, layer in self.layers.items():
            try:
                layer.fit(data, entry)
            except KeyError as error:
                if entry != 0:
                    raise
                hint = "give a mapping, as in preprocess={'image': 'standardize'}"
                raise KeyError(f"{error.args[0]}: {hint}") from None

    def __call__(self, batch: Any, *, partial: bool = False) -> Any:
        """Return a batch of the same type with the preprocessed entries.

        Args:
            batch: A dict, a tuple or list, or a tensor, which is its own entry 0.
            partial: Whether entries may be missing, such as targets in a prediction. At least one
                must be there.

        Raises:
            KeyError: If a dict doesn't have an entry.
            IndexError: If a tuple or list is too short, or a tensor has no layer.
            TypeError: If an entry is no tensor of real numbers.
        """
        is_partial = partial or isinstance(batch, Tensor)
        present = {e: one for e, one in self.layers.items() if not is_partial or has_item(batch, e)}
        for entry, layer in (present or self.layers).items():
            x = tensor_of(batch, entry)
            if layer.device != x.device:
                layer.to(x.device)
            batch = with_item(batch, entry, layer(x))
        return batch

    def is_like(self, other: "BatchPreprocessing") -> bool:
        """Return whether both have the same layers and options for the same entries."""
        mine, others = (
            {entry: layer.config() for entry, layer in one.layers.items()} for one in (self, other)
        )
        return mine == others

    def state_dict(self) -> dict[str, Any]:
        """Return the layers and their statistics, in types that ``torch.load`` takes."""
        return {
            "entries": list(self.layers),
            "configs": [layer.config() for layer in self.layers.values()],
            "statistics": [layer.state_dict() for layer in self.layers.values()],
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Self:
        """Return what :meth:`state_dict` was of."""
        layers = [from_config(config) for config in state["configs"]]
        for layer, statistics in zip(layers, state["statistics"], strict=True):
            layer.load_state_dict(statistics)
        return cls(dict(zip(state["entries"], layers, strict=True)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.layers})"


def _layer(given: PreprocessingSteps) -> Preprocessing:
    if isinstance(given, Preprocessing):
        return deepcopy(given)
    if isinstance(given, list | tuple):
        return Compose([_layer(one) for one in given])
    if not isinstance(given, str):
        raise TypeError(
            "preprocess has to be a name such as 'standardize', a preprocessing layer such as"
            " Standardize(per='pixel'), a list of these, or a mapping from entries to such values,"
            f" but got {shown(given)}"
        )
    names = get_args(PreprocessingName)
    return preprocessing(check_choice("preprocess", given, names))
