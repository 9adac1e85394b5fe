"""Preprocessing layers by name, and from the primitives of a checkpoint."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from lightning_practices._arguments import check_choice, shown
from lightning_practices.data._preprocessing.compose import Compose
from lightning_practices.data._preprocessing.preprocessing import Preprocessing
from lightning_practices.data._preprocessing.scaling import MeanSubtraction, MinMax, Standardize
from lightning_practices.data._preprocessing.whiten import Whiten

PreprocessingName = Literal["center", "standardize", "min_max", "whiten"]
"""Names of the layers of :func:`~lightning_practices.data.preprocessing`."""

_NAMED: dict[PreprocessingName, Callable[..., Preprocessing]] = {
    "center": MeanSubtraction,
    "standardize": Standardize,
    "min_max": MinMax,
    "whiten": Whiten,
}
_CLASSES: dict[str, Callable[..., Preprocessing]] = {
    cls.__name__: cls for cls in (MeanSubtraction, Standardize, MinMax, Whiten, Compose)
}


def preprocessing(name: PreprocessingName, **options: Any) -> Preprocessing:
    """Return the preprocessing layer of a name, not fitted yet.

    Args:
        name: ``"center"`` for :class:`MeanSubtraction`, ``"standardize"`` for
            :class:`Standardize`, ``"min_max"`` for :class:`MinMax`, ``"whiten"`` for
            :class:`Whiten`.
        **options: Arguments of that class.

    Raises:
        TypeError: If the class doesn't take an option.
        ValueError: If there is no such name.

    Example:
        >>> from lightning_practices.data import preprocessing
        >>> preprocessing("min_max", range=(0, 1))
        MinMax(range=(0.0, 1.0), per='auto', not fitted)
    """
    return _NAMED[check_choice("name", name, get_args(PreprocessingName))](**options)


def from_config(config: Mapping[str, Any]) -> Preprocessing:
    """Return the layer whose :meth:`Preprocessing.config` this is, not fitted yet.

    Raises:
        TypeError: If the class doesn't take an option.
        ValueError: If the class is none of this package.
    """
    options = dict(config)
    name = options.pop("class", None)
    if name not in _CLASSES:
        raise ValueError(
            f"a preprocessing layer of class {shown(name)} can't be made from a checkpoint: only"
            f" {', '.join(_CLASSES)} can"
        )
    if "layers" in options:
        options["layers"] = [from_config(each) for each in options["layers"]]
    return _CLASSES[name](**options)
