"""Strategies under which a callback can't work, or tell of its results: an error, a warning."""

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
)
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_warn

from lightning_practices._packages import either

FSDP1_OR_DEEPSPEED = (FSDPStrategy, DeepSpeedStrategy)

_WHY: dict[type, str] = {
    FSDPStrategy: "shards several parameters together, as one flat tensor",
    DeepSpeedStrategy: "keeps weights and gradients in its engine",
    ModelParallelStrategy: "shards each parameter over the ranks",
    Strategy: "may hold the weights in a form of its own",
}


def refuse(
    trainer: Trainer,
    *kinds: type[Strategy],
    who: str,
    cannot: str,
    instead: str,
) -> None:
    """Raise if the Trainer's strategy is one of ``kinds``, and say why and what to do.

    Args:
        trainer: The Trainer of the fit that starts.
        kinds: The strategies that are refused; :class:`~lightning.pytorch.strategies.Strategy`
            refuses all.
        who: The callback that refuses, such as ``"EarlyStopping"``.
        cannot: The action that is impossible, a verb with its object: ``"keep the best weights"``.
        instead: The advice, a sentence in the imperative: ``"use ModelParallelStrategy"``.

    Raises:
        MisconfigurationException: If the strategy is refused.
    """
    strategy = trainer.strategy
    if isinstance(strategy, either(*kinds)):
        why = next(why for kind, why in _WHY.items() if isinstance(strategy, either(kind)))
        raise MisconfigurationException(
            f"{who} can't {cannot} under {type(strategy).__name__}, which {why}: {instead}"
        )


def warn_of_other_processes(trainer: Trainer) -> None:
    """Warn if the fit runs in processes that end with it, and with them the callbacks' results."""
    launcher = getattr(trainer.strategy, "launcher", None)
    if isinstance(launcher, either(_MultiProcessingLauncher)):
        rank_zero_warn(
            "this strategy fits in processes of its own, and Lightning brings back only the"
            " weights, callback_metrics and the best_model_path of the Trainer's own checkpoint"
            " callback. Other results of callbacks, such as best_step of EarlyStopping or the"
            " snapshots of SnapshotEnsemble, are lost: read them in on_fit_end or from a"
            " checkpoint, or run a script with strategy='ddp'"
        )
