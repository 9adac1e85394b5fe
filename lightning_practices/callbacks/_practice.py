"""The base class of the callbacks."""

from typing import Any
from weakref import ref

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lightning_practices._left_out import error_of_unfreezing, warning_of_averages
from lightning_practices._packages import OfBothPackages, check_one_package
from lightning_practices.callbacks._trainer.modes import Watched, warn_of_modes
from lightning_practices.callbacks._trainer.others import callbacks_of
from lightning_practices.callbacks._trainer.strategies import warn_of_other_processes

# Lightning sets the first two, methods of the module, at each run.
_NOT_COPIED = ("log", "log_dict", "_last_fit")


class PracticeCallback(OfBothPackages, Callback):
    """Base of the callbacks: it keeps the state of one fit out of other fits.

    - A fit begins as with a new object, whatever fits this object has seen before.
    - A fit continues with the present state if the last fit was of the same module and the same
      Trainer, and the Trainer has taken steps, as after ``max_epochs`` was raised.
    - A fit from a checkpoint has the state in the checkpoint, and no other.
    - Under ``ddp_spawn``, ``ddp_fork`` and ``ddp_notebook`` the fit runs in other processes, and
      the state in the calling process stays as before: a warning says so.
    - Validations, tests and predictions don't change the state of a fit, even if they load a
      checkpoint.

    A subclass defines its state in :meth:`_reset`, and calls ``super()`` in the hooks below.
    """

    _has_fitted = False  # whether this object, or its original, was in a fit
    _last_fit: tuple[ref[Trainer], ref[LightningModule]] | None = None

    def _reset(self) -> None:
        """Set the state, which checkpoints hold too, to the state of a new object."""

    def _watched(self) -> list[Watched]:
        """Return the monitored values, each with its mode."""
        monitor = getattr(self, "monitor", None)
        return [] if monitor is None else [(monitor, getattr(self, "mode", "min"))]

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        check_one_package(trainer, pl_module, self)
        if stage == "fit":
            # A checkpoint's state is loaded after this hook.
            if not self._continues(trainer, pl_module):
                self._reset()
            self._last_fit = ref(trainer), ref(pl_module)
            self._has_fitted = True
            others = callbacks_of(trainer, PracticeCallback)
            earlier = others[: others.index(self)] if self in others else []
            if not earlier:
                warn_of_other_processes(trainer)
            warn_of_modes(self._watched(), [pair for one in earlier for pair in one._watched()])
        super().setup(trainer, pl_module, stage)

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if trainer.state.fn == TrainerFn.FITTING:
            if error := error_of_unfreezing(trainer, checkpoint):
                raise MisconfigurationException(error)
            if warning := warning_of_averages(trainer, checkpoint):
                rank_zero_warn(warning)
        if self._takes_state(trainer):
            self._reset()  # the checkpoint may hold no state of this callback
        else:
            checkpoint["callbacks"].pop(self.state_key, None)  # so that Lightning doesn't load it

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the module's methods would contain a copy of the module.
        return {name: value for name, value in vars(self).items() if name not in _NOT_COPIED}

    def _takes_state(self, trainer: Trainer) -> bool:
        """Say whether a run from a checkpoint takes the state of this callback from it."""
        return trainer.state.fn == TrainerFn.FITTING or not self._has_fitted

    def _continues(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        if not self._has_fitted:
            return False
        if self._last_fit is not None:  # it is None in a copy, as in a copy of the Trainer
            last_trainer, last_module = self._last_fit
            if last_trainer() is not trainer or last_module() is not pl_module:
                return False
        return trainer.global_step > 0
