"""The best weights of a fit: kept, given back, saved and loaded."""

import weakref
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed.tensor import DTensor

from lightning_practices.callbacks._trainer.kept_state import KeptState, is_sharded

CHECKPOINT_KEY = "early_stopping_weights"


class BestWeights:
    """The best state of a module, and the last one, once the best has overwritten it.

    Args:
        owner: Who keeps them, as errors name it.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._best: KeptState | None = None
        self._last: KeptState | None = None
        self._module: weakref.ref[LightningModule] | None = None  # of both

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_module": None}  # a weak reference can't be pickled

    def __bool__(self) -> bool:
        return self._best is not None

    def keep(self, pl_module: LightningModule) -> None:
        """Keep the state that the module has now, in place of an earlier one."""
        if self._best is None:
            self._best = KeptState()
        self._best.copy_(pl_module.state_dict())
        self._module = weakref.ref(pl_module)

    def start(self, pl_module: LightningModule) -> None:
        """Begin a fit: what the module has now is the last state.

        Raises:
            MisconfigurationException: If the best one is another module's.
        """
        if self._best is not None:
            self._check(pl_module)
        self._last = None

    def give_back(self, pl_module: LightningModule) -> None:
        """Give the module its best state.

        Raises:
            MisconfigurationException: If that is another module's.
        """
        assert self._best is not None
        self._check(pl_module)
        live = pl_module.state_dict()
        if not self._best.equals(live):
            self._last = KeptState.of(live)
            self._best.load_into(pl_module, strict=pl_module.strict_loading)

    def save(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        checkpoint: dict[str, Any],
        best_step: int | None,
    ) -> dict[str, Any]:
        """Return what a checkpoint has to hold; every rank has to call this.

        Args:
            trainer: What saves.
            pl_module: The module.
            checkpoint: All that is saved so far.
            best_step: The step of the best state.
        """
        assert self._best is not None
        sharded = is_sharded(pl_module)
        live = pl_module.state_dict() if sharded else checkpoint["state_dict"]
        if self._last is not None:  # the best are back; buffers may be recalibrated since
            names = {name for name, _ in pl_module.named_parameters()} & live.keys()
            is_best = self._best.equals(live, names)
        else:
            is_best = best_step == trainer.global_step and self._best.equals(live)
        if not sharded:
            # torch.save writes a shared tensor once.
            kept = {"best": checkpoint["state_dict"] if is_best else self._best.values}
            if is_best and self._last is not None:
                kept["last"] = self._last.values
            return kept
        return self._save_sharded(trainer, pl_module, checkpoint, is_best)

    def _save_sharded(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        checkpoint: dict[str, Any],
        is_best: bool,
    ) -> dict[str, Any]:
        assert self._best is not None
        state = checkpoint["state_dict"]
        if any(isinstance(value, DTensor) for value in state.values()):
            rank_zero_warn(
                f"{self._owner}: a distributed checkpoint has one place for weights, so the best"
                " ones are not saved beside the present ones: set"
                " ModelParallelStrategy(save_distributed_checkpoint=False) to resume with them"
            )
            return {}
        is_best = trainer.strategy.reduce_boolean_decision(is_best, all=True)
        kept = {"best": state if is_best else self._best.gather(pl_module)}
        if is_best and self._last is not None:
            kept["last"] = self._last.gather(pl_module)
        return kept

    def load(
        self, trainer: Trainer, pl_module: LightningModule, kept: dict[str, Any], wanted: bool
    ) -> None:
        """Take over what :meth:`save` has returned.

        Args:
            trainer: What loads.
            pl_module: The module; in a fit it gets the last state, if this isn't what it has.
            kept: That.
            wanted: Whether the best state is.
        """
        read = KeptState.shards_of if is_sharded(pl_module) else _plain
        self._best = read(kept["best"], pl_module) if wanted and "best" in kept else None
        self._module = weakref.ref(pl_module)
        if "last" in kept and trainer.state.fn == TrainerFn.FITTING:
            last = read(kept["last"], pl_module)
            last.load_into(pl_module, strict=pl_module.strict_loading)

    def _check(self, pl_module: LightningModule) -> None:
        assert self._best is not None
        stranger = self._module is not None and self._module() is not pl_module
        if stranger or not self._best.fits(pl_module):
            raise MisconfigurationException(
                f"{self._owner} holds the best weights of another module or of other shapes than"
                f" {type(pl_module).__name__} has now: make a new one for a new module"
            )


def _plain(state: dict[str, Any], pl_module: LightningModule) -> KeptState:
    return KeptState.of(state)
