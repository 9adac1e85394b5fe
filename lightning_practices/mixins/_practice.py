"""The base class of the mixins."""

import inspect
import re
from collections.abc import Callable, Iterable
from copy import deepcopy
from difflib import get_close_matches
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Self, TypeVar, get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from typing_extensions import override

from lightning_practices._arguments import check_choice, check_name, shown
from lightning_practices._left_out import (
    error_of_unfreezing,
    warning_of_averages,
    warning_of_schedule,
)
from lightning_practices._packages import check_bases, either, packages_of
from lightning_practices.callbacks import Mode
from lightning_practices.mixins._hyperparameters import as_texts, leave_out_objects, without_objects
from lightning_practices.optim import Optimizer

_Callback = TypeVar("_Callback", bound=Callback)
_Kind = TypeVar("_Kind")


if TYPE_CHECKING:
    _Module = LightningModule
else:  # the class that subclasses a mixin brings the LightningModule, of either package
    _Module = object


class PracticeMixin(_Module):
    """Base of the mixins: adds their callbacks to every run, and reports misspelt arguments.

    A mixin takes its own arguments by keyword and passes all other arguments on to the next class.
    So your own base class gets its arguments too, by position or keyword.

    If you call ``save_hyperparameters``, checkpoints hold the short values of arguments, such as
    ``early_stopping=10``. They don't hold objects, such as ``early_stopping=EarlyStopping(...)``,
    since ``torch.load`` would refuse a checkpoint with such an object. Nor do they hold an argument
    of yours with such an object in it, such as a dict of settings. To continue training, give these
    arguments to ``load_from_checkpoint`` again.

    Raises:
        TypeError: On subclassing, if bases are of both packages of Lightning. On construction, if
            an argument is unknown to all classes.
        RuntimeError: When a Trainer runs the module, if your class has not called
            ``super().__init__``.
        MisconfigurationException: When the fit starts, if your own ``configure_callbacks`` leaves
            out the callbacks that ``super().configure_callbacks()`` returns.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_bases(cls)
        # A class's own on_save_checkpoint may not call super().
        hook = "on_save_checkpoint"
        owner = next(base for base in cls.__mro__ if hook in vars(base))
        if owner is cls or not issubclass(owner, PracticeMixin):
            setattr(cls, hook, without_objects(getattr(cls, hook)))

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Raise unless the class is a LightningModule, then make the instance."""
        _check_is_module(cls)
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _check_arguments(type(self), kwargs)
        super().__init__(*args, **kwargs)
        self._practices: list[Callback] = []

    def _bring(self, callback: _Callback | None) -> _Callback | None:
        """Add a copy of a callback to each run of this module, and return the copy.

        It is a copy because the user may pass one object to several modules, and each module needs
        a separate state.
        """
        own = deepcopy(callback)
        if own is not None:
            self._practices.append(own)
        return own

    @override
    def configure_callbacks(self) -> list[Callback]:
        check_constructed(self)
        given: Any = super().configure_callbacks()
        others = [given] if isinstance(given, either(Callback)) else given
        if not others and self._are_attached():
            return []
        return [*others, *self._practices]  # the same objects at each run

    def _are_attached(self) -> bool:
        """Say whether a run has all callbacks already, from an earlier run of the same Trainer.

        Lightning would replace each by itself, and log that. An own ``configure_callbacks`` may add
        others of the same types, which Lightning keeps only beside all of them.
        """
        trainer: Any = self._trainer
        if trainer is None or trainer.state.status != TrainerStatus.RUNNING:
            return False
        owner = next(base for base in type(self).__mro__ if "configure_callbacks" in vars(base))
        is_ours = owner.__module__.startswith(f"{__name__.partition('._')[0]}.")
        return is_ours and all(one in trainer.callbacks for one in self._practices)

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        present = self.trainer.callbacks  # type: ignore[attr-defined]
        missing = [type(one).__name__ for one in self._practices if one not in present]
        if missing:
            order = type(self).__mro__
            owner = next(base for base in order if "configure_callbacks" in vars(base)).__name__
            raise MisconfigurationException(
                f"{owner}.configure_callbacks doesn't return the callbacks of the mixins, so"
                f" {', '.join(missing)} would not run: return [*super().configure_callbacks(), ...]"
                " with your own callbacks in place of the dots; None for a mixin's argument turns"
                " its callback off"
            )
        resumed = self.trainer._checkpoint_connector._loaded_checkpoint  # empty if none is
        if error := error_of_unfreezing(self.trainer, resumed):
            raise MisconfigurationException(error)
        for warning in (warning_of_averages, warning_of_schedule):
            if text := warning(self.trainer, resumed):
                rank_zero_warn(text)

    @property
    @override
    def hparams_initial(self) -> Any:
        """The hyperparameters that Lightning gives to loggers, with the text of each object.

        A logger's ``hparams.yaml`` would otherwise hold Python objects, which YAML's safe loader
        refuses.
        """
        return as_texts(super().hparams_initial)

    @_restricted_classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:  # noqa: N805
        """Load a module, as Lightning does.

        Raises:
            TypeError: If an argument is missing, as checkpoints don't hold objects.
        """
        try:
            module: Self = super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        except TypeError as error:
            missing = re.findall(r"'(\w+)'", str(error)) if "missing" in str(error) else []
            if not set(missing) & {*_of_mixins(cls), *_named(cls)}:
                raise
            arguments = ", ".join(f"{name}=..." for name in missing)
            raise TypeError(
                f"{error}: the checkpoint doesn't hold the value, as checkpoints leave out objects"
                " of practices, and hold other values only after save_hyperparameters: give the"
                f" value again, as in {cls.__name__}.load_from_checkpoint(path, {arguments})"
            ) from error
        return module

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        leave_out_objects(self, checkpoint)
        saved = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        for name, value in saved.items():
            if isinstance(value, PathLike) and name in _of_mixins(type(self)):
                saved[name] = fspath(value)


class MonitorMixin(PracticeMixin):
    """Base of the mixins that monitor a logged value.

    Args:
        *args: Positional arguments for the next base class.
        monitor: Name of the logged value to monitor.
        mode: Direction in which the value improves: ``"min"`` if lower is better, ``"max"`` if
            higher is better.
        **kwargs: Keyword arguments for the next base class.

    Raises:
        TypeError: If ``monitor`` is not a string.
        ValueError: If ``monitor`` is empty, or ``mode`` is neither ``"min"`` nor ``"max"``.
    """

    def __init__(
        self,
        *args: Any,
        monitor: str = "val_loss",
        mode: Mode = "min",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._monitor = check_name("monitor", monitor)
        self._mode: Mode = check_choice("mode", mode, get_args(Mode))


def check_constructed(module: PracticeMixin) -> None:
    """Raise unless the constructors of the mixins have run; each run of a Trainer checks this.

    Raises:
        RuntimeError: If they haven't.
    """
    if "_practices" not in vars(module):
        name = type(module).__name__
        raise RuntimeError(
            f"the mixins of {name} have no settings, as their constructors have not run: call"
            f" super().__init__(...) in the __init__ of {name} and of each of its bases, and not"
            " LightningModule.__init__(self)"
        )


def configured(
    name: str,
    given: object,
    kind: type[_Kind],
    short: tuple[type, ...],
    make: Callable[[Any], _Kind],
) -> _Kind | None:
    """Return the object for an argument, which may be a short value, the object or ``None``.

    Args:
        name: Name of the argument.
        given: Value of the argument.
        kind: Class of the object.
        short: Types of the short value.
        make: Makes the object from the short value.

    Raises:
        TypeError: If the value is none of these three.
    """
    if given is None or isinstance(given, kind):
        return given
    if isinstance(given, short) and (bool in short or not isinstance(given, bool)):
        try:
            return make(given)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}={shown(given)}: {error}") from error
    first = next(iter(inspect.signature(kind).parameters.values()), None)
    has_example = first is not None and isinstance(first.default, short)
    example = f", as in {name}={first.default!r}" if first is not None and has_example else ""
    room = kind.__module__.partition("._")[0]
    types = [*(each.__name__ for each in short), f"{room}.{kind.__name__}", "None"]
    got = type(given)
    raise TypeError(
        f"{name} has to be of one of the types {', '.join(types)}, but got {shown(given)}, of"
        f" {got.__module__}.{got.__qualname__}{example}"
    )


def _lightning_module(module: type) -> type:
    """Return the ``LightningModule`` among the bases of a class."""
    return next(base for base in module.__mro__ if base in either(LightningModule))


def _check_is_module(module: type) -> None:
    """Raise if no base of a class is a LightningModule, as the mixins are none by themselves."""
    if not packages_of(module):
        mixins = ", ".join(base.__name__ for base in module.__bases__)
        raise TypeError(
            f"{module.__name__} is no LightningModule: add the class to its bases, as in class"
            f" {module.__name__}({mixins}, LightningModule)"
        )


def _check_arguments(module: type, given: Iterable[str]) -> None:
    """Raise if one of the arguments is unknown to the classes after the mixins."""
    order = module.__mro__
    place = order.index(PracticeMixin)
    bases = order[place + 1 : order.index(_lightning_module(module))]
    follower = next((base for base in bases if "__init__" in vars(base)), None)
    taken = _keywords(follower) if follower else {}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return  # the base takes any argument
    for name in given:
        if name not in taken:
            owners = dict.fromkeys(taken, follower or module) | _of_mixins(module)
            raise TypeError(_unknown(module, name, owners))


def _of_mixins(module: type) -> dict[str, type]:
    """Return the arguments of the classes before ``PracticeMixin``, each with its class."""
    order = module.__mro__
    # If several classes take an argument, the first in the method resolution order gets it.
    before = reversed(order[: order.index(PracticeMixin)])
    return {key: base for base in before for key in _named(base)}


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
    start = f"{module.__name__} got an unknown argument {shown(name)}"
    option = "lr" if name == "learning_rate" else name
    if option in _named(Optimizer)[1:] and "optimizer" in owners:  # the first is its name
        return (
            f"{start}: give it to the optimizer, as in optimizer=Optimizer('adamw', {option}=...)"
        )
    near = get_close_matches(name, owners, n=1)
    if near:
        return f"{start}: {owners[near[0]].__name__} takes {near[0]!r}"
    return f"{start}: there are {', '.join(map(repr, owners))}"
