"""Which data a user has given: a datamodule or loaders."""

from collections.abc import Sized
from typing import Any, TypeGuard

from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_practices._packages import either

_EXPECTED = "a datamodule, a train loader, or a pair (train loader, validation loader)"


def parts_of(module: Any, data: Any) -> tuple[Any, Any, Any]:
    """Return the datamodule, the train loader and the validation loader, or ``None`` for each.

    Args:
        module: The module, which may define loaders.
        data: The argument of :func:`~lightning_practices.advisor.advise`.

    Raises:
        TypeError: If ``data`` is neither a datamodule nor loaders.
        ValueError: If it is a tuple of another length than 1 or 2, or there is no training data.
    """
    given = data if isinstance(data, tuple) else (data,)
    if len(given) == 1 and _is_datamodule(given[0]):
        _check_source(given[0])
        return given[0], None, None
    if len(given) not in (1, 2):
        kinds = ", ".join(type(one).__name__ for one in given)
        raise ValueError(
            f"data has to be {_EXPECTED}, but got a tuple of {len(given)} ({kinds}): leave out a"
            " test loader, which is not looked at; several train loaders are a list"
        )
    train, val = (*given, None)[:2]
    for name, loaders in (("train", train), ("validation", val)):
        for one in tree_leaves(loaders):
            _check_loader(one, name)
    if train is None:
        _check_source(module)
    return None, train, val


def gives_loader(maker: Any, name: str) -> bool:
    """Say whether a module or datamodule defines a method such as ``"train_dataloader"``."""
    own = getattr(maker, name, None)
    return own is not None and getattr(own, "__qualname__", "") != f"DataHooks.{name}"


def note_on(data: Any) -> str | None:
    """Return a note for an exception of a step on several loaders, which a pair may have meant."""
    if isinstance(data, list | dict) and len(data) > 1:
        return (
            f"data is a {type(data).__name__}, as Trainer.fit takes it for several train loaders"
            " whose batches a step receives together; a train and a validation loader are a tuple,"
            " (train loader, validation loader)"
        )
    return None


def note_on_empty(loaders: Any) -> str:
    """Return the text of an exception for training data that gave no batch."""
    nothing = "the training data gave no batch, so that no step could be looked at"
    for one in tree_leaves(loaders):
        if not isinstance(one, DataLoader) or not one.drop_last or not _is_sized(one.sampler):
            continue
        size, samples = getattr(one.batch_sampler, "batch_size", one.batch_size), len(one.sampler)
        if size and 0 < samples < size:
            return (
                f"{nothing}: drop_last=True drops the last batch if it isn't full, and the loader"
                f" has {samples} samples for batches of {size}. Give batch_size={samples} or less,"
                " or drop_last=False"
            )
    return f"{nothing}: give data with at least one batch"


def _is_sized(value: Any) -> TypeGuard[Sized]:
    try:
        return len(value) >= 0
    except (TypeError, NotImplementedError):
        return False


def _is_datamodule(data: Any) -> bool:
    return hasattr(data, "prepare_data") and not isinstance(data, (type, *either(LightningModule)))


def _check_source(maker: Any) -> None:
    if not gives_loader(maker, "train_dataloader"):
        is_module = isinstance(maker, either(LightningModule))
        instead = "give a datamodule or loaders, as " if is_module else ""
        raise ValueError(
            f"got no training data: {instead}{type(maker).__name__} has no train_dataloader"
        )


def _check_loader(one: Any, name: str) -> None:
    """Raise for what is no loader, with what to give in its place."""
    if one is None:
        return
    got = f"an object of class {type(one).__name__}"
    if isinstance(one, type):
        got, remedy = f"the class {one.__name__}", f"give an instance, such as {one.__name__}(...)"
    elif isinstance(one, either(LightningDataModule)):
        remedy = "a datamodule stands alone, as it has the loaders of both splits"
    elif isinstance(one, Dataset) and not isinstance(one, IterableDataset):
        remedy = (
            "a dataset gives single samples: give"
            f" DataLoader(dataset, batch_size=32, shuffle={name == 'train'}), or"
            " DataLoader(dataset, batch_size=None) for one that gives whole batches"
        )
    elif hasattr(one, "shape"):
        remedy = (
            "give DataLoader(TensorDataset(x, y), batch_size=32) for tensors, or"
            " DataLoader(batches, batch_size=None) for a list of batches"
        )
    elif isinstance(one, str) or not hasattr(one, "__iter__"):
        remedy = "give what gives batches, such as a DataLoader"
    else:
        return
    raise TypeError(f"data has to be {_EXPECTED}, but got {got} for the {name} loader: {remedy}")
