"""The base class of the mixins."""

import inspect
from collections.abc import Callable, Iterable
from copy import deepcopy
from difflib import get_close_matches
from typing import Any, TypeVar

from lightning.pytorch import Callback, LightningModule
from typing_extensions import override

from lightning_practices._twin import reject_twin
from lightning_practices.callbacks import Mode
from lightning_practices.ensembles import MonteCarloDropout
from lightning_practices.optim import Optimizer
from lightning_practices.schedules import LearningRateSchedule

_OBJECTS = (Callback, LearningRateSchedule, MonteCarloDropout, Optimizer)  # that arguments may be

_Callback = TypeVar("_Callback", bound=Callback)
_Kind = TypeVar("_Kind")


class PracticeMixin(LightningModule):
    """Base of the mixins: brings their callbacks to every run, and names misspelt arguments.

    A mixin takes its own arguments by keyword and passes all others on, so a base class of yours
    gets its arguments too, by position or keyword.

    If you call ``save_hyperparameters``, checkpoints hold the short values, such as
    ``early_stopping=10``, and leave out the objects, such as ``early_stopping=EarlyStopping(...)``,
    without which ``torch.load`` would refuse them. Give these again to ``load_from_checkpoint`` if
    you want to train on.

    Raises:
        TypeError: On subclassing, if a base is from ``pytorch_lightning``. On construction, if no
            class takes an argument.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        reject_twin(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _check_arguments(type(self), kwargs)
        super().__init__(*args, **kwargs)
        self._practices: list[Callback] = []

    def _bring(self, callback: _Callback | None) -> _Callback | None:
        """Return a copy of a callback, which this module brings to each of its runs.

        A copy, because one object may be given to several modules, and each has a state of its own.
        """
        own = deepcopy(callback)
        if own is not None:
            self._practices.append(own)
        return own

    @override
    def configure_callbacks(self) -> list[Callback]:
        given = super().configure_callbacks()
        others = [given] if isinstance(given, Callback) else given
        return [*others, *self._practices]  # the same ones: Lightning asks again for each run

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        # By default torch loads no checkpoint that has other objects than tensors in it.
        saved = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        for name in [name for name, value in saved.items() if isinstance(value, _OBJECTS)]:
            del saved[name]


class MonitorMixin(PracticeMixin):
    """Base of the mixins that judge training by a logged value.

    Args:
        *args: Passed on.
        monitor: Name of the logged value by which training is judged.
        mode: Whether it is to fall, ``"min"``, or to rise, ``"max"``.
        **kwargs: Passed on.
    """

    def __init__(
        self,
        *args: Any,
        monitor: str = "val_loss",
        mode: Mode = "min",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._monitor = monitor
        self._mode: Mode = mode


def configured(
    name: str,
    given: object,
    kind: type[_Kind],
    short: tuple[type, ...],
    make: Callable[[Any], _Kind],
) -> _Kind | None:
    """Return the object that an argument stands for, which is a short value, the object or None.

    Args:
        name: Name of the argument.
        given: Its value.
        kind: Class of the object.
        short: Types of the short value.
        make: Makes the object from the short value.

    Raises:
        TypeError: If the value is none of these.
    """
    if given is None or isinstance(given, kind):
        return given
    if isinstance(given, short) and (bool in short or not isinstance(given, bool)):
        return make(given)
    room = kind.__module__.partition("._")[0]
    types = [*(each.__name__ for each in short), f"{room}.{kind.__name__}", "None"]
    got = type(given)
    raise TypeError(
        f"{name} has to be of one of the types {', '.join(types)}, but got {given!r}, of"
        f" {got.__module__}.{got.__qualname__}"
    )


def _check_arguments(module: type, given: Iterable[str]) -> None:
    """Raise if no class that comes after the mixins takes an argument."""
    order = module.__mro__
    place = order.index(PracticeMixin)
    bases = order[place + 1 : order.index(LightningModule)]
    follower = next((base for base in bases if "__init__" in vars(base)), None)
    taken = _keywords(follower) if follower else {}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return  # the base takes any argument
    for name in given:
        if name not in taken:
            # The first class in the order of the bases is the one that gets an argument.
            owners = {key: base for base in reversed(order[:place]) for key in _named(base)}
            raise TypeError(_unknown(module, name, owners))


def _keywords(base: type) -> dict[str, inspect.Parameter]:
    """Return the parameters that a class's own ``__init__`` takes by keyword."""
    if "__init__" not in vars(base):
        return {}
    parameters = [*inspect.signature(base.__init__).parameters.values()][1:]  # type: ignore[misc]
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
    return {p.name: p for p in parameters if p.kind not in by_position}


def _named(base: type) -> list[str]:
    return [name for name, p in _keywords(base).items() if p.kind is not p.VAR_KEYWORD]


def _unknown(module: type, name: str, owners: dict[str, type]) -> str:
    start = f"{module.__name__} got an unknown argument {name!r}"
    near = get_close_matches(name, owners, n=1)
    if near:
        return f"{start}: {owners[near[0]].__name__} takes {near[0]!r}"
    return f"{start}: there are {', '.join(map(repr, owners))}"
