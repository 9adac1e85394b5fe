"""What a copied module does otherwise than the user's while it is observed."""

import inspect
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_practices.advisor._configured import with_monitors
from lightning_practices.advisor._data import gives_loader
from lightning_practices.advisor._isolation import copied_data

_LOADERS = ("train_dataloader", "val_dataloader")
# Methods that the attributes of a copy replace. These attributes refer to the copy.
_REPLACED = (
    "configure_optimizers", "configure_callbacks", "configure_gradient_clipping", "clip_gradients",
    "practice_callbacks", "backward", "log", *_LOADERS,
)  # fmt: skip


def simplify(model: LightningModule) -> None:
    """Let a copy bring no callbacks, which would save files or look for a rate, and not clip."""

    def leave(*args: Any, **kwargs: Any) -> None:
        pass

    configure = model.configure_optimizers
    model.configure_optimizers = lambda: with_monitors(configure())  # type: ignore[method-assign]
    model.configure_callbacks = list  # type: ignore[method-assign]
    model.configure_gradient_clipping = leave  # type: ignore[method-assign]
    model.clip_gradients = leave  # type: ignore[method-assign]
    if hasattr(model, "practice_callbacks"):  # of the mixins, whose clipping needs its callback
        model.practice_callbacks = list  # type: ignore[assignment]
    _survive(model)


def note_synced(model: LightningModule) -> set[str]:
    """Let a copy note the names that it logs for all ranks or for rank 0 alone; return their set.

    On one rank, Lightning keeps no trace of that.
    """
    log, names = model.log, set[str]()
    signature = inspect.signature(log)

    def noting(*args: Any, **kwargs: Any) -> None:
        given = signature.bind_partial(*args, **kwargs).arguments
        if given.get("sync_dist") or given.get("rank_zero_only"):
            names.add(given["name"])
        log(*args, **kwargs)

    model.log = noting  # type: ignore[method-assign]
    return names


def _survive(model: LightningModule) -> None:
    """Let a copy go on without an optimizer or a graph, so that rules can say why."""
    backward, configure_optimizers = model.backward, model.configure_optimizers

    def backward_if_possible(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if loss.requires_grad:
            backward(loss, *args, **kwargs)

    def optimizers_if_possible() -> Any:
        try:
            return configure_optimizers()
        except ValueError:  # torch refuses an empty list of parameters
            if any(p.requires_grad for p in model.parameters()):
                raise
            return None

    model.backward = backward_if_possible  # type: ignore[method-assign]
    model.configure_optimizers = optimizers_if_possible  # type: ignore[method-assign]


def copy_loaders(maker: Any) -> None:
    """Let the hooks of a copied module or datamodule return copies of the loaders they make."""

    def copying(make: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: copied_data(make())

    for name in _LOADERS:
        if gives_loader(maker, name):
            setattr(maker, name, copying(getattr(maker, name)))


def release(trainer: Trainer, module: LightningModule, datamodule: Any = None) -> None:
    """End references in cycles, so that a copy's memory is free without the garbage collector.

    The copy and the Trainer that has run it refer to each other. The collector may run long after
    the GPU has run out of memory.

    Args:
        trainer: The Trainer, which can't be used any more.
        module: The copied module, which can't be run any more.
        datamodule: The copied datamodule, or ``None``.
    """
    release_trainer(trainer, module)
    for maker in (module, datamodule):
        if maker is not None:
            maker.trainer = None
            for name in _REPLACED:
                vars(maker).pop(name, None)


def release_trainer(trainer: Trainer, module: LightningModule) -> None:
    """End the references from a Trainer to the copy that it has run, and the copy's gradients."""
    for p in module.parameters():
        p.grad = None
        for optimizer in trainer.optimizers:
            optimizer.state.pop(p, None)  # and not all: the optimizer may be the user's own
    # Loops and connectors refer to the Trainer, and the metrics of logged values to the strategy.
    vars(trainer.strategy).clear()
    vars(trainer).clear()
