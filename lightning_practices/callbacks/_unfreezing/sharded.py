"""Resuming under FSDP2, where checkpoints lack the optimizer states of frozen parameters."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.optim import Optimizer

from lightning_practices._names import plain_name
from lightning_practices._packages import either

_LOAD = "load_checkpoint"


def load_by_saved_states(trainer: Trainer, module: LightningModule) -> None:
    """Let ``ModelParallelStrategy`` load one checkpoint that lacks some optimizer states.

    While loading, torch requires an optimizer state for exactly the trainable parameters. Only the
    checkpoint tells which parameters have a state, and only the strategy reads the checkpoint. So
    this wraps the strategy's ``load_checkpoint``: the wrapper first reads the names, and makes
    exactly these parameters trainable while the checkpoint is loaded.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, either(ModelParallelStrategy)):
        return
    load = strategy.load_checkpoint

    def load_checkpoint(checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        load_as_usual(trainer)
        path = Path(strategy.broadcast(checkpoint_path))
        read = _names_in_folder if path.is_dir() else _names_in_file
        names = read(path, module, strategy.optimizers, weights_only)
        with _trainable(module, names):
            return load(checkpoint_path, weights_only)

    vars(strategy)[_LOAD] = load_checkpoint


def load_as_usual(trainer: Trainer) -> None:
    """Remove the wrapper of :func:`load_by_saved_states`, if no checkpoint was loaded."""
    vars(trainer.strategy).pop(_LOAD, None)


@contextmanager
def _trainable(module: LightningModule, names: Collection[str]) -> Iterator[None]:
    """Make exactly the parameters in ``names`` trainable within the context."""
    flags = {p: p.requires_grad for p in module.parameters()}
    for name, p in module.named_parameters():
        p.requires_grad_(plain_name(name) in names)
    try:
        yield
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)


def _names_in_folder(path: Path, module: LightningModule, *_: Any) -> set[str]:
    """Return the names of parameters with an optimizer state in a distributed checkpoint."""
    keys = FileSystemReader(path).read_metadata().state_dict_metadata
    states = [key.partition(".state.")[2] for key in keys if key.startswith("optimizer_")]
    return {
        plain
        for plain in (plain_name(name) for name, _ in module.named_parameters())
        if any(state.startswith(f"{plain}.") for state in states)
    }


def _names_in_file(
    path: Path, module: LightningModule, optimizers: list[Optimizer], weights_only: bool | None
) -> set[str]:
    """Return the names of parameters with an optimizer state in a checkpoint of one file.

    Raises:
        MisconfigurationException: If the checkpoint was saved under another strategy, or with other
            parameter groups.
    """
    checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
    places = {p: (n, plain_name(name)) for n, (name, p) in enumerate(module.named_parameters())}
    names = dict(places.values())
    found: set[str] = set()
    for optimizer, saved in zip(optimizers, checkpoint["optimizer_states"], strict=True):
        order = [key for group in saved["param_groups"] for key in group["params"]]
        # This strategy numbers parameters in the module's order, other strategies in the
        # optimizer's order.
        expected = [places[p][0] for group in optimizer.param_groups for p in group["params"]]
        if order != expected:
            raise MisconfigurationException(
                f"{path} was saved under another strategy than ModelParallelStrategy or with other"
                " parameter groups, and Lightning would mix up the states of the optimizers:"
                " resume under the strategy that has saved it, or load its weights and fit without"
                " ckpt_path"
            )
        found |= {names[key] for key in saved["state"]}
    return found
