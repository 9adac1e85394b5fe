"""The learning rate that the class or Lightning's finder sets, and its way to the optimizer."""

from collections.abc import Mapping, MutableMapping
from numbers import Real
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from typing_extensions import override

from lightning_practices._arguments import check_number
from lightning_practices._packages import OfBothPackages, either
from lightning_practices.optim import Optimizer

_NAMES = ("lr", "learning_rate")  # of attributes and hyperparameters that the finder may set
_CHECKPOINT_KEY = "optimizer_lr"


class FoundLearningRate(OfBothPackages, Callback):
    """Give the learning rate that Lightning's finder finds to the module's optimizers.

    A ``LearningRateFinder`` of the Trainer runs after the optimizer of the fit is made. It sets the
    rate of all parameter groups to the found rate. This callback then gives each group its own
    rate, as if the optimizer had been made with the found rate.

    Args:
        optimizer: Makes the optimizers of the module. It gets the found rate.

    Attributes:
        optimizer: The same object.
        part: The module whose optimizer was made last; ``None`` for the whole module.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.part: nn.Module | None = None
        self._given = optimizer.lr
        self._is_assigned = False  # whether the given rate is that of an attribute
        self._is_hyperparameter = False  # whether it is that of a hyperparameter
        self._is_found = False
        self._is_new = False  # whether the optimizers of the present fit may lack the rate

    def give(self, name: str, rate: Any) -> None:
        """Set the learning rate with which the module is made, by an attribute ``name``.

        Raises:
            ValueError: If it is negative or not finite.
        """
        rate, before = check_number(name, rate, ge=0), self.optimizer.lr
        is_of_optimizer = not self._is_assigned and not self._is_hyperparameter
        if before not in (None, rate) and is_of_optimizer:
            rank_zero_warn(
                f"the attribute {name}={rate:g} of the module replaces the rate of the Optimizer"
                f" that the module was given, lr={before:g}: set the rate in one place, the"
                " attribute or the Optimizer"
            )
        self.optimizer.lr = self._given = rate
        self._is_assigned, self._is_hyperparameter = True, False

    def complete(self, attributes: Mapping[str, Any], hparams: Mapping[Any, Any]) -> None:
        """Set the rate of the module's attribute or hyperparameter, if the Optimizer has none.

        Args:
            attributes: The module's own attributes. The one that was assigned last counts.
            hparams: The module's hyperparameters. They count if no attribute is a rate.

        Raises:
            ValueError: If the rate is negative or not finite.
        """
        if self.optimizer.lr is not None and not self._is_hyperparameter:
            return
        for name in reversed([n for n in attributes if n in _NAMES]):
            if _is_rate(attributes[name]):
                self.give(name, attributes[name])
                return
        for name in _NAMES:
            if _is_rate(rate := hparams.get(name)):
                self.optimizer.lr = self._given = check_number(name, rate, ge=0)
                self._is_hyperparameter = True
                return

    def set(self, rate: Any, hparams: MutableMapping[Any, Any]) -> None:
        """Set the learning rate of the optimizers that are made from now on.

        Args:
            rate: The learning rate.
            hparams: The module's hyperparameters, which get the rate too.

        Raises:
            TypeError: If the rate isn't a number.
            ValueError: If it is negative or not finite.
        """
        self.optimizer.lr = check_number("lr", rate, ge=0)
        self._is_found = self._is_new = True
        self._is_hyperparameter = False
        for name in _NAMES:
            if name in hparams:
                hparams[name] = self.optimizer.lr
        if isinstance(hparams.get("optimizer"), Optimizer):
            hparams["optimizer"] = self.optimizer

    def save(self, checkpoint: dict[str, Any], hparams: Mapping[Any, Any]) -> None:
        """Write the found rate to a checkpoint, unless the hyperparameters hold it."""
        rate = self.optimizer.lr
        if self._is_found and all(hparams.get(name) != rate for name in _NAMES):
            checkpoint[_CHECKPOINT_KEY] = {"given": self._given, "found": rate}

    def load(
        self,
        checkpoint: Mapping[str, Any],
        attributes: MutableMapping[str, Any],
        hparams: MutableMapping[Any, Any],
    ) -> None:
        """Set the found rate of a checkpoint, in the module's attributes and hyperparameters too.

        Another rate in the module's arguments counts more, and so does a rate that was found since.
        """
        rates = checkpoint.get(_CHECKPOINT_KEY)
        if rates is None or rates["given"] != self._given or self._is_found:
            return
        self.set(rates["found"], hparams)
        for name in _NAMES:
            if _is_rate(attributes.get(name)):
                attributes[name] = self.optimizer.lr

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # After Lightning's finders, and before callbacks that read the rates of the optimizer.
        finders = either(LearningRateFinder, BatchSizeFinder)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        order = sorted(callbacks, key=lambda one: (not isinstance(one, finders), one is not self))
        trainer.callbacks = order  # type: ignore[attr-defined]

    # A finder may run in either hook.
    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_rates(trainer, pl_module)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_rates(trainer, pl_module)

    def _give_rates(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give each group of the optimizer the rate with which it would be made now."""
        if not self._is_new:
            return
        self._is_new = False
        ours = self.optimizer.parameter_groups(self.part or pl_module)
        for optimizer in trainer.optimizers:
            theirs = optimizer.param_groups
            if [_members(group) for group in ours] == [_members(group) for group in theirs]:
                for group, other in zip(ours, theirs, strict=True):
                    other["lr"] = group["lr"]


def save_rate(module: Any, checkpoint: dict[str, Any]) -> None:
    """Write the found rate of a module, if it has one, to a checkpoint."""
    found: FoundLearningRate | None = vars(module).get("_found_learning_rate")
    if found is not None:
        found.save(checkpoint, module.hparams)


def load_rate(module: Any, checkpoint: dict[str, Any]) -> None:
    """Set the found rate of a checkpoint in a module."""
    found: FoundLearningRate | None = vars(module).get("_found_learning_rate")
    if found is not None:
        found.load(checkpoint, vars(module), module.hparams)


class RateAttribute:
    """An attribute of a module, ``lr`` or ``learning_rate``, that gives the optimizer its rate.

    The module's class may use it as any attribute, or not at all. A number that is assigned before
    the first fit, as in the class's ``__init__``, is the rate of the optimizer; if a class after
    the mixins assigns it, a rate of the Optimizer counts more. Once the module has
    a Trainer:

    - If the module has neither of the names, as an attribute or a hyperparameter, ``lr`` is the
      rate of the optimizer, since the finder needs one of the names.
    - The rate that the finder assigns becomes the rate of the optimizer, and so does the rate that
      is assigned while no fit runs. A rate that the class assigns while a fit runs doesn't.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner, self._name = owner, name

    def __get__(self, module: Any, kind: type | None = None) -> Any:
        if module is None:
            return self
        if self._name in vars(module):
            return vars(module)[self._name]
        try:
            return getattr(super(self._owner, module), self._name)  # of a base class
        except AttributeError:
            found = self._stands_for(module)
            if found is not None:
                found.complete({}, module.hparams)
                return found.optimizer.lr
            raise  # and Python asks Module.__getattr__, which knows parameters and buffers

    def __set__(self, module: Any, value: Any) -> None:
        found = _found_of(module) if _is_from_outside(module) else None
        if found is not None and self._stands_for(module) is not None:
            found.set(value, module.hparams)
            if self._name not in vars(module):
                return
        self._set_own(module, value)
        if not _is_rate(value):
            return
        if found is not None:
            found.set(value, module.hparams)
        elif (new := vars(module).get("_found_learning_rate")) and _found_of(module) is None:
            new.give(self._name, value)

    def __delete__(self, module: Any) -> None:
        if self._name not in vars(module):
            raise AttributeError(f"{type(module).__name__!r} object has no own {self._name!r}")
        del vars(module)[self._name]

    def _stands_for(self, module: Any) -> FoundLearningRate | None:
        """Return the object whose rate this attribute stands for; ``None`` for the class's own."""
        found = _found_of(module)
        if found is None:
            return None
        if self._name in module.hparams:
            return found  # since the finder sets a hyperparameter without a notice
        holders = (vars(module), module._parameters, module._buffers, module.hparams)
        is_named = any(name in holder for holder in holders for name in _NAMES)
        return None if is_named or self._name != _NAMES[0] else found

    def _set_own(self, module: Any, value: Any) -> None:
        order = type(module).__mro__
        for base in order[order.index(self._owner) + 1 :]:
            inherited: Any = vars(base).get(self._name)
            if hasattr(type(inherited), "__set__"):  # a property
                inherited.__set__(module, value)
                return
        vars(module)[self._name] = value


def _found_of(module: Any) -> FoundLearningRate | None:
    """Return the module's ``FoundLearningRate``; ``None`` before the first fit, or if it is off."""
    own = vars(module)
    return own.get("_found_learning_rate") if own.get("_trainer") is not None else None


def _is_from_outside(module: Any) -> bool:
    """Say whether a finder or the user assigns to the module, rather than the module itself."""
    trainer = vars(module).get("_trainer")
    if trainer is None:
        return False
    is_running = trainer.state.status == TrainerStatus.RUNNING
    finder = either(LearningRateFinder)
    return not is_running or any(isinstance(one, finder) for one in trainer.callbacks)


def _is_rate(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _members(group: Mapping[str, Any]) -> list[int]:
    return [id(p) for p in group["params"]]
