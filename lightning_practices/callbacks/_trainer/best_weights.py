"""The best weights of a fit: kept in memory, restored, saved and loaded."""

import weakref
from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed.tensor import DTensor

from lightning_practices.callbacks._trainer.copies import SAME, load_copies
from lightning_practices.callbacks._trainer.kept_state import KeptState
from lightning_practices.callbacks._trainer.ranks import all_ranks
from lightning_practices.callbacks._trainer.sharding import is_sharded, to_shards, to_whole


class BestWeights:
    """The best state of a module, and its last state once the best state has been restored.

    A checkpoint has to hold the last state too, since the optimizer's state belongs to it.

    Args:
        owner: The name of the callback in error messages.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._best: KeptState | None = None
        self._last: KeptState | None = None
        self._module: weakref.ref[LightningModule] | None = None  # owner of the states

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_module": None}  # a weak reference can't be pickled

    def __bool__(self) -> bool:
        return self._best is not None

    def keep(self, pl_module: LightningModule) -> None:
        """Keep the module's present state as the best state."""
        if self._best is None:
            self._best = KeptState()
        self._best.copy_(pl_module.state_dict())
        self._module = weakref.ref(pl_module)

    def are_in(self, pl_module: LightningModule, state: Mapping[str, Any] | None = None) -> bool:
        """Say whether the module has the parameters of the best state.

        Args:
            pl_module: The module.
            state: Its state. Default: its ``state_dict()``.
        """
        live = pl_module.state_dict() if state is None else state
        names = {name for name, _ in pl_module.named_parameters()} & live.keys()
        return self._best is not None and self._best.equals(live, names)

    def drop_last(self) -> None:
        """Drop the copy of the last state, as the module starts a fit with its present state.

        Lightning's Tuner saves and loads a checkpoint before training starts. With the copy it
        would load the last state of the previous fit.
        """
        self._last = None

    def start(self, pl_module: LightningModule) -> None:
        """Start training. The module itself has the last state, so the copy of it is dropped.

        Raises:
            MisconfigurationException: If the best state belongs to another module.
        """
        if self._best is not None:
            self._check(pl_module)
        self._last = None

    def give_back(self, pl_module: LightningModule) -> None:
        """Load the best state into the module, and keep a copy of its last state.

        Raises:
            MisconfigurationException: If the best state belongs to another module.
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
        """Return the states for a checkpoint, ``"best"`` and ``"last"``; every rank has to call it.

        Args:
            trainer: The Trainer that saves.
            pl_module: The module.
            checkpoint: The checkpoint so far, which holds the ``"state_dict"``.
            best_step: The optimizer steps taken when the best state was kept.
        """
        assert self._best is not None
        sharded = is_sharded(pl_module)
        live = pl_module.state_dict() if sharded else checkpoint["state_dict"]
        if self._last is not None:
            # The best state was restored. Buffers may have been recalibrated since.
            is_best = self.are_in(pl_module, live)
        else:
            is_best = best_step == trainer.global_step and self._best.equals(live)
        if sharded:
            return self._save_sharded(trainer, live, checkpoint["state_dict"], is_best)
        kept: dict[str, Any] = {"best": SAME if is_best else self._best.values}
        if is_best and self._last is not None:
            kept["last"] = self._last.values
        return kept

    def _save_sharded(
        self, trainer: Trainer, live: dict[str, Any], saved: dict[str, Any], is_best: bool
    ) -> dict[str, Any]:
        assert self._best is not None
        if any(isinstance(value, DTensor) for value in saved.values()):
            rank_zero_warn(
                f"{self._owner}: a distributed checkpoint has one place for weights, so the best"
                " weights are not saved beside the present ones: set"
                " ModelParallelStrategy(save_distributed_checkpoint=False) to resume with them"
            )
            return {}
        is_best = all_ranks(trainer, is_best)
        kept: dict[str, Any] = {"best": SAME if is_best else to_whole(self._best.values, live)}
        if is_best and self._last is not None:
            kept["last"] = to_whole(self._last.values, live)
        return kept

    def load(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        checkpoint: dict[str, Any],
        kept: dict[str, Any],
        wanted: bool,
    ) -> None:
        """Load the states of a checkpoint, through the module's ``on_load_checkpoint``.

        Args:
            trainer: The Trainer that loads.
            pl_module: The module. In a fit it gets the last state, if the ``"state_dict"`` of the
                checkpoint holds the best state instead.
            checkpoint: The checkpoint.
            kept: The states that :meth:`save` returned.
            wanted: Whether to keep the best state of the checkpoint.

        Raises:
            MisconfigurationException: If the states don't fit the module.
        """
        use = {"best": wanted, "last": trainer.state.fn == TrainerFn.FITTING}
        copies = {label: state for label, state in kept.items() if use[label]}
        what = f"the {{}} weights of {self._owner}"
        loaded = load_copies(pl_module, checkpoint, copies, what)
        live = pl_module.state_dict()
        states = {label: KeptState.of(to_shards(one, live)) for label, one in loaded.items()}
        self._best = states.get("best")
        self._module = weakref.ref(pl_module)
        if "last" in states:
            states["last"].load_into(pl_module, strict=pl_module.strict_loading)

    def _check(self, pl_module: LightningModule) -> None:
        assert self._best is not None
        is_another = self._module is not None and self._module() is not pl_module
        if is_another or not self._best.fits(pl_module):
            raise MisconfigurationException(
                f"{self._owner} holds the best weights of another module, or of other shapes than"
                f" {type(pl_module).__name__} has now: make a new callback for a new module"
            )
