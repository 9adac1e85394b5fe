"""Run a user's module and data so that no effect of it stays."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_practices._copies import copy_of
from lightning_practices._random_states import (
    generators_within,
    random_states,
    set_random_states,
    set_states,
    states_of,
)
from lightning_practices._seeds import seed_generators
from lightning_practices.data import BatchPreprocessing

_SEED = 0  # so that the advice is the same each time
_LOGGERS = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")

WORKERS = "_workers_of_original"  # attribute of a copied loader

_Data = TypeVar("_Data")


def workers_of(loader: DataLoader[Any]) -> int:
    """Return the number of workers of a loader, or of the loader that it is a copy of."""
    found: int = vars(loader).get(WORKERS, loader.num_workers)
    return found


def copied_module(module: LightningModule) -> LightningModule:
    """Return a copy of a module that isn't attached to a Trainer.

    The copy shares datasets, loaders, and attributes that can't be copied, such as locks. Its
    parameters have the hooks that ``register_hook`` has given the module's, as these are part of
    the gradient. Hooks of ``register_post_accumulate_grad_hook`` stay behind, as most of them step
    an optimizer, which holds the user's own parameters.
    """
    trainer, fabric = module._trainer, module._fabric
    module._trainer = module._fabric = None  # a copy of a Trainer would copy all that it holds
    try:
        model = copy_of(module, (Dataset, DataLoader))
    finally:
        module._trainer, module._fabric = trainer, fabric
    for p, copied in zip(module.parameters(), model.parameters(), strict=True):
        if copied is not p and copied.requires_grad:
            for hook in (p._backward_hooks or {}).values():
                copied.register_hook(hook)  # type: ignore[no-untyped-call]
    return model


def copied_data(data: _Data) -> _Data:
    """Return a copy of loaders or a datamodule which shares the datasets.

    A loader reads in this process, so that no worker has to start. Modules and preprocessing that
    a datamodule holds are copied.
    """
    if isinstance(data, DataLoader):
        loader = copy.copy(data)
        loader.__dict__[WORKERS] = workers_of(data)
        loader.num_workers = 0
        loader.prefetch_factor = None
        loader.__dict__["persistent_workers"] = False
        loader._iterator = None
        _copy_samplers(loader)
        return loader
    if isinstance(data, dict):
        return type(data)({key: copied_data(one) for key, one in data.items()})
    if isinstance(data, list | tuple):
        return type(data)(copied_data(one) for one in data)
    if not hasattr(data, "prepare_data"):
        return data
    datamodule = copy.copy(data)
    for name, value in vars(data).items():
        if isinstance(value, nn.Module | BatchPreprocessing):
            setattr(datamodule, name, copy.deepcopy(value))
    return datamodule


def _copy_samplers(loader: DataLoader[Any]) -> None:
    """Give a copied loader samplers of its own, since they may count their epochs."""
    try:
        sampler, batches = copy.copy(loader.sampler), copy.copy(loader.batch_sampler)
    except TypeError:  # such as a generator
        return
    within = getattr(batches, "sampler", None)
    if within is loader.sampler:
        batches.sampler = sampler  # type: ignore[union-attr]
    elif isinstance(within, Sampler):
        batches.sampler = copy.copy(within)  # type: ignore[union-attr]
    loader.__dict__ |= {"sampler": sampler, "batch_sampler": batches}


@contextmanager
def isolated(*objects: object) -> Iterator[None]:
    """Run the block from a fixed seed and in silence, and restore the random states afterwards.

    Args:
        objects: Objects whose own generators are restored too, such as loaders.
    """
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = devices if is_used else []
    states = random_states(devices)
    own = generators_within({str(place): one for place, one in enumerate(objects)})
    own_states = states_of(own)
    try:
        with (
            warnings.catch_warnings(), _silence(), torch.random.fork_rng(devices=devices),
            torch.inference_mode(False), torch.enable_grad(),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            seed_generators(_SEED)
            yield
    finally:
        set_states(own, own_states)
        set_random_states(states, devices)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep Lightning's loggers to errors: the user didn't start this fit."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
