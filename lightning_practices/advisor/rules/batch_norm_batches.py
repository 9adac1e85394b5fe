"""Batches that are too small for the statistics of batch norm."""

from collections.abc import Callable, Iterator, Sized
from typing import cast

from torch import nn

from lightning_practices._names import some
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call

# Wu and He 2018: the error of a ResNet-50 is 23.7 % with 16 images a device, 24.8 with 8, 27.3 with
# 4 and 34.7 with 2, although each image has hundreds of positions. Without positions the mean of 8
# values is off by a third of their deviation.
_FEW, _FEW_WITH_POSITIONS, _RATHER_FEW = 8, 4, 8
_FEW_UNSYNCHRONISED = 16


@rule(
    "LP321", "error",
    practice="No batch of batch norm holds a single value per channel",
    measures="samples of the last training batch, where batch norm sees one position a sample",
    healthy="two and more",
    source="torch.nn.functional.batch_norm: expected more than 1 value per channel when training",
)  # fmt: skip
def last_batch_of_one(seen: Observation) -> Iterator[Evidence]:
    calls = [call for call in _training_norms(seen) if _positions(call) == 1]
    for loader in seen.train.loaders:
        size, sampler = loader.batch_size, cast("Sized", loader.sampler)
        if (
            not calls
            or size is None
            or size < 2
            or loader.drop_last
            or not hasattr(sampler, "__len__")
        ):
            continue
        length = -(-len(sampler) // _devices(seen))
        if length % size != 1 or length == 1 or not _reaches_last(seen, length // size + 1):
            continue
        if _rows(calls[0]) != min(size, length):
            continue  # its rows aren't the samples
        yield Evidence(
            f"{length} samples in batches of {size} leave a last batch of one sample, for which"
            f" {calls[0]} raises an error at the end of the first epoch",
            "DataLoader(train_dataset, drop_last=True)",
            tuple(call.module for call in calls),
        )


@rule(
    "LP322", "warning",
    practice="Batch norm gets 8 samples and more",
    measures="samples in the batch of a batch norm in training mode, on each device",
    healthy="8 and more; 4 and more where each sample has several positions",
    source="Wu and He 2018, group normalization, arXiv:1803.08494",
)  # fmt: skip
def batch_norm_with_few_samples(seen: Observation) -> Iterator[Evidence]:
    yield from _few(seen, lambda rows, positions: rows < _limit(positions))


@rule(
    "LP323", "hint",
    practice="Batch norm gets enough samples on each device",
    measures="the same: less than 8 samples with several positions, or, on several devices, less"
    " than 16 and no synchronisation",
    healthy="16 and more",
    source="Wu and He 2018, group normalization, arXiv:1803.08494",
)  # fmt: skip
def batch_norm_with_rather_few_samples(seen: Observation) -> Iterator[Evidence]:
    limit = _FEW_UNSYNCHRONISED if _devices(seen) > 1 else _RATHER_FEW
    yield from _few(seen, lambda rows, positions: _limit(positions) <= rows < limit)


def _limit(positions: int) -> int:
    return _FEW if positions == 1 else _FEW_WITH_POSITIONS


def _few(seen: Observation, is_few: Callable[[int, int], bool]) -> Iterator[Evidence]:
    if not seen.train.batches:
        return
    norms = _training_norms(seen)
    # Behind a global pooling one of many norms sees one position; convolutions before it see more.
    positions = max(map(_positions, norms), default=1)
    calls = [call for call in norms if is_few(_rows(call), positions)]
    calls = [] if calls and _is_synchronised(seen) else calls
    if not calls:
        return
    devices = _devices(seen)
    each = f" on each of {devices} devices" if devices > 1 else ""
    remedy = "a larger batch_size, or nn.GroupNorm(32, channels), which needs no batch"
    if devices > 1:
        remedy = f"Trainer(sync_batchnorm=True), {remedy}"
    yield Evidence(
        f"batch norm takes its statistics from {_rows(calls[0])} samples{each} in"
        f" {some([call.module for call in calls])}: they are noisy, and differ from those of"
        " validation",
        remedy,
        tuple(call.module for call in calls),
        {"samples": _rows(calls[0])},
    )


def _training_norms(seen: Observation) -> list[Call]:
    """Return the calls of batch norm that compute statistics."""
    return [
        call
        for call in seen.step.calls
        if call.name == "batch_norm" and call.get(5, "training", False) and call.data
    ]


def _rows(call: Call) -> int:
    return call.inputs[0].shape[0]


def _positions(call: Call) -> int:
    count = 1
    for size in call.inputs[0].shape[2:]:
        count *= size
    return count


def _devices(seen: Observation) -> int:
    trainer = seen.trainer
    return 1 if trainer is None else trainer.num_devices * trainer.num_nodes


def _is_synchronised(seen: Observation) -> bool:
    layers = any(isinstance(part, nn.SyncBatchNorm) for part in seen.modules.values())
    plugin = getattr(getattr(seen.trainer, "strategy", None), "_layer_sync", None)
    return _devices(seen) > 1 and (layers or plugin is not None)


def _reaches_last(seen: Observation, batches: int) -> bool:
    """Whether an epoch reaches the last of so many batches."""
    trainer = seen.trainer
    if trainer is None:
        return True
    limit, steps = trainer.limit_train_batches, trainer.max_steps
    is_limited = limit < batches if isinstance(limit, int) else (limit is not None and limit < 1.0)
    return not is_limited and not 0 <= steps < batches
