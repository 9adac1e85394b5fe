"""The base class of the mixins."""

import re
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import wraps
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
from lightning_practices._packages import check_bases, either
from lightning_practices.callbacks import Mode
from lightning_practices.mixins._hyperparameters import as_texts, leave_out_objects
from lightning_practices.mixins._saved_arguments import (
    LEFT_OUT_KEY,
    OWN_KEY,
    ArgumentsKey,
    SavedArguments,
    for_next_class,
    hyperparameters_of_next_class,
    load,
    noted,
    split,
)
from lightning_practices.mixins._signatures import (
    arguments_until,
    called_with,
    check_is_module,
    check_known,
    check_order,
    check_shared,
    mixin_arguments,
    named,
    next_classes,
    positional,
)

_MOST_CHARACTERS = 80  # of an object in an error about its type
_LOADER = ("map_location", "hparams_file", "strict", "weights_only")  # load_from_checkpoint's

_Callback = TypeVar("_Callback", bound=Callback)
_Kind = TypeVar("_Kind")


if TYPE_CHECKING:
    _Module = LightningModule
else:  # the class that subclasses a mixin brings the LightningModule, of either package
    _Module = object


class _NotingItsCall:
    """Notes the arguments of the call that makes an object, for the constructor.

    It is no part of ``PracticeMixin``, since LightningCLI takes the arguments of a class from its
    own ``__new__`` instead of its constructor.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        check_is_module(cls)
        check_shared(cls, PracticeMixin, kwargs)
        make = super().__new__
        module: Self = make(cls) if make is object.__new__ else make(cls, *args, **kwargs)
        vars(module)["_call"] = args, kwargs  # until the constructor has noted the names
        return module


class _SetByConstructor:
    """An attribute that Lightning's constructor sets, and that Lightning reads before any hook."""

    def __get__(self, module: Any, kind: type | None = None) -> Any:
        if module is not None:
            check_constructed(module)
        raise AttributeError  # as without this attribute


class PracticeMixin(_NotingItsCall, _Module):
    """Base of the mixins: adds their callbacks to every run, and reports misspelt arguments.

    A mixin takes its own arguments by keyword and passes all other arguments on to the next class.
    So your own base class gets its arguments too, by position or keyword. The argument of a
    practice is a short value, the configured object, or ``None``, which turns the practice off.
    ``True`` and ``False`` are only for practices that are nothing but on or off, ``checkpoint`` and
    ``exact_resume``.

    If a class calls ``save_hyperparameters``, checkpoints hold the arguments with which the module
    was made, under the key ``"lightning_practices_arguments"``. Lightning's ``"hyper_parameters"``
    hold the arguments of the class after the mixins, as its own checkpoints would. So for ``class
    Net(TrainingPractices, BaseNet)``, ``Net`` and ``BaseNet`` load the checkpoints of either class.

    Checkpoints hold short values, such as ``early_stopping=10``. They don't hold objects, such as
    ``early_stopping=EarlyStopping(...)``, since ``torch.load`` would refuse a checkpoint with such
    an object. Nor do they hold an argument of yours with such an object in it, such as a dict of
    settings. To continue training, give these arguments to ``load_from_checkpoint`` again, which
    warns of those that are missing.

    If a mixin and a class after it take an argument of the same name, the mixin gets it. A value
    that may be for either is an error, unless the ``__init__`` of your class takes it.

    Raises:
        TypeError: On subclassing, if bases are of both packages of Lightning, or a class is listed
            before the mixin that extends it. On construction, if an argument is unknown to all
            classes, or may be for a mixin or for a class after it.
        RuntimeError: When a Trainer runs the module, or a checkpoint is loaded, if your class has
            not called ``super().__init__``.
        MisconfigurationException: When the fit starts, if your own ``configure_callbacks`` leaves
            out the callbacks that ``super().configure_callbacks()`` returns.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.mixins import FusedLayersMixin, PracticeMixin
        >>> class Net(FusedLayersMixin, BoringModel): ...
        >>> isinstance(Net(fuse_layers=True), PracticeMixin)
        True
        >>> Net(fuse_layer=True)
        Traceback (most recent call last):
            ...
        TypeError: Net got an unknown argument 'fuse_layer': FusedLayersMixin takes 'fuse_layers'
    """

    # Lightning looks for arguments in a checkpoint under this key.
    CHECKPOINT_HYPER_PARAMS_KEY = ArgumentsKey()
    # When a Trainer gets the module, and when a checkpoint is loaded.
    _compiler_ctx = _SetByConstructor()
    _strict_loading = _SetByConstructor()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_bases(cls)
        check_order(cls, PracticeMixin)
        # A class's own on_save_checkpoint may not call super().
        hook = "on_save_checkpoint"
        owner = next(base for base in cls.__mro__ if hook in vars(base))
        if owner is cls or not issubclass(owner, PracticeMixin):
            setattr(cls, hook, _sorting_arguments(getattr(cls, hook)))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        check_known(cls, PracticeMixin, kwargs)
        given = for_next_class(cls)
        kwargs.update(given)
        follower = next(iter(next_classes(cls, PracticeMixin)), None)
        names = positional(follower) if follower else []
        call_args, call_kwargs = vars(self).pop("_call", ((), {}))
        ours = mixin_arguments(cls, PracticeMixin)
        own = {n: value for n, value in given.items() if n not in ours}
        own |= called_with(cls, call_args, call_kwargs, names)
        got = dict(zip(names, args, strict=False)) | kwargs
        with hyperparameters_of_next_class(got):
            # Lightning collects hyperparameters from the frames of constructors, outwards up to the
            # first other frame, here that of the lambda.
            (lambda: super(PracticeMixin, self).__init__(*args, **kwargs))()
        self._saved_arguments = noted(self, PracticeMixin, own, got)
        # A class after the mixins doesn't take the arguments of the classes before them.
        before = {*self._saved_arguments.own, *arguments_until(cls, PracticeMixin)}
        self._saved_arguments.others = frozenset(before if follower else ours)
        self._practices: list[Callback] = []
        self._left_out: list[Callback] = []  # of these, in favour of a callback of the Trainer

    def _bring(self, callback: _Callback | None) -> _Callback | None:
        """Add a copy of a callback to each run of this module, and return the copy.

        It is a copy because the user may pass one object to several modules, and each module needs
        a separate state.
        """
        own = deepcopy(callback)
        if own is not None:
            self._practices.append(own)
        return own

    def practice_callbacks(self) -> list[Callback]:
        """Return the callbacks of the mixins, which ``configure_callbacks`` adds to each run."""
        return [one for one in self._practices if one not in self._left_out]

    def _leave_out(self, own: Callback, is_out: bool) -> None:
        """Leave a callback out of the run that starts, or bring it again."""
        self._left_out = [one for one in self._left_out if one is not own]
        if is_out:
            self._left_out.append(own)

    @override
    def configure_callbacks(self) -> list[Callback]:
        check_constructed(self)
        given: Any = super().configure_callbacks()
        others = [given] if isinstance(given, either(Callback)) else given
        if not others and self._are_attached():
            return []
        return [*others, *self.practice_callbacks()]  # the same objects at each run

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
        return is_ours and all(one in trainer.callbacks for one in self.practice_callbacks())

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        present = self.trainer.callbacks  # type: ignore[attr-defined]
        missing = [type(one).__name__ for one in self.practice_callbacks() if one not in present]
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
        options = dict(zip(_LOADER, args, strict=False)) | kwargs
        loader = super().load_from_checkpoint
        try:
            module: Self = load(cls, PracticeMixin, loader, checkpoint_path, options)
        except TypeError as error:
            missing = re.findall(r"'(\w+)'", str(error)) if "missing" in str(error) else []
            if not set(missing) & {*arguments_until(cls, PracticeMixin), *named(cls)}:
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

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.mixins import EarlyStoppingMixin, MonitorMixin
        >>> class Net(EarlyStoppingMixin, BoringModel): ...
        >>> issubclass(Net, MonitorMixin)
        True
        >>> Net(monitor="val_acc", mode="max").early_stopping.monitor
        'val_acc'
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
    example: str,
    none: str = "to turn it off",
) -> _Kind | None:
    """Return the object for an argument, which may be a short value, the object or ``None``.

    The object may be of the class's twin in Lightning's other package too.

    Args:
        name: Name of the argument.
        given: Value of the argument.
        kind: Class of the object.
        short: Types of the short value.
        make: Makes the object from the short value.
        example: A right value, for the error.
        none: What ``None`` is for, for the error.

    Raises:
        TypeError: If the value is none of these three.
    """
    if given is None or isinstance(given, either(kind)):
        return given
    if isinstance(given, short) and (bool in short or not isinstance(given, bool)):
        try:
            return make(given)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}={shown(given)}: {error}") from error
    types = [*(each.__name__ for each in short), f"{public_name(kind)}", "None"]
    got = shown(given)
    if isinstance(given, type):
        got = f"the class {public_name(given)}"
    elif "\n" in got or len(got) > _MOST_CHARACTERS:
        got = f"an object of {public_name(type(given))}"
    elif type(given).__name__ not in got:
        got += f", of class {public_name(type(given))}"
    raise TypeError(
        f"{name} has to be of one of the types {', '.join(types)}, but got {got}: give"
        f" {name}={example}, or {name}=None {none}"
    )


def public_name(kind: type) -> str:
    """Return the name by which users import a class: of the first package that has it."""
    parts = kind.__module__.split(".")
    for count in range(1, len(parts)):
        package = ".".join(parts[:count])
        if getattr(sys.modules.get(package), kind.__qualname__, None) is kind:
            return f"{package}.{kind.__qualname__}"
    return kind.__qualname__ if parts == ["builtins"] else f"{kind.__module__}.{kind.__qualname__}"


def _sorting_arguments(save: Callable[[Any, dict[str, Any]], None]) -> Any:
    """Return an ``on_save_checkpoint`` that also sorts the arguments, after it has run ``save``."""

    @wraps(save)
    def on_save_checkpoint(self: Any, checkpoint: dict[str, Any]) -> None:
        save(self, checkpoint)
        if type(self).on_save_checkpoint is on_save_checkpoint:  # the outermost, which ends last
            split(self, checkpoint, vars(self).get("_saved_arguments", SavedArguments()))
            leave_out_objects(checkpoint, self.CHECKPOINT_HYPER_PARAMS_KEY)
            if names := leave_out_objects(checkpoint, OWN_KEY):
                checkpoint[LEFT_OUT_KEY] = names

    return on_save_checkpoint


PracticeMixin.on_save_checkpoint = _sorting_arguments(PracticeMixin.on_save_checkpoint)  # type: ignore[method-assign]
