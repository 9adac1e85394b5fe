"""Averaged weights in fits that are killed, and on two ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import WeightAveraging
from lightning_practices.mixins import LearningRateScheduleMixin
from lightning_practices.schedules import LearningRateSchedule
from lightning_practices.surgery import recalibrate_batch_norm
from tests.callbacks import averaging
from tests.callbacks.averaging import KEY, VALIDATION, Loader, alike, averaged
from tests.callbacks.scripted import (
    FILTERS,
    STEPS,
    At,
    State,
    Stateful,
    same,
    saves,
    state_of,
    trainer_of,
)
from tests.processes import kill, run, run_killed

pytestmark = FILTERS

EMA: dict[str, Any] = {"decay": 0.6, "start": 3}
SWA: dict[str, Any] = {"kind": "swa", "start": 0}
KILLED_AT, SAVED_AT = 10, 8  # the third step of epoch 2, and its start


class Scheduled(LearningRateScheduleMixin, averaging.Net):
    def __init__(self) -> None:
        # The length is given: to find it out, data is loaded before a loader's state is.
        super().__init__(schedule=LearningRateSchedule("cosine", warmup_steps=3, steps=4 * STEPS))
        self.rates: dict[int, float] = {}

    @override
    def on_train_batch_end(self, *given: Any) -> None:
        super().on_train_batch_end(*given)
        self.rates[self.trainer.global_step] = self.trainer.optimizers[0].param_groups[0]["lr"]


def fit(
    folder: Path,
    arguments: dict[str, Any],
    resume: bool = False,
    killed_at: int = -1,
    every: int | None = None,
    devices: int = 1,
) -> dict[str, Any]:
    """Fit, saving each epoch or ``every`` so many steps, and say how that ended."""
    module, callback = Scheduled(), WeightAveraging(**arguments)
    trainer = trainer_of(
        callback,
        ModelCheckpoint(folder, save_last=True, every_n_train_steps=every),
        At(killed_at, kill),
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=4,
    )
    rows = list(torch.randn(2 * STEPS * devices, 2, generator=torch.Generator().manual_seed(1)))
    train: Any = Stateful(rows, batch_size=2) if every else DataLoader(rows, batch_size=2)  # type: ignore[arg-type]
    path = folder / "last.ckpt" if resume else None
    trainer.fit(module, train, DataLoader(rows, batch_size=8), ckpt_path=path)  # type: ignore[arg-type]
    found = {"trained": module.trained, "seen": module.seen, "rates": module.rates}
    return found | {"weights": state_of(module), "averaged": callback.averaged}


def assert_same(resumed: dict[str, Any], whole: dict[str, Any], first: int) -> None:
    assert list(resumed["trained"]) == list(range(first + 1, 17))
    assert resumed["averaged"] == whole["averaged"]
    for step, state in resumed["trained"].items():
        assert same(state, whole["trained"][step])
        assert resumed["rates"][step] == whole["rates"][step]
    assert all(same(state, whole["seen"][step]) for step, state in resumed["seen"].items())
    assert same(resumed["weights"], whole["weights"])


@pytest.mark.parametrize(
    ("arguments", "every"),
    [
        pytest.param(EMA, 5, id="ema"),
        pytest.param(SWA, 3, id="swa"),
    ],
)
def test_killed(tmp_path: Path, arguments: dict[str, Any], every: int) -> None:
    whole = fit(tmp_path / "whole", arguments, every=every)
    run_killed(fit, [(tmp_path, arguments, False, KILLED_AT, every)])
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    step = {5: 10, 3: 9}[every]
    assert saved["global_step"] == step
    assert_same(fit(tmp_path, arguments, resume=True, every=every), whole, step)


def both(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return fit(folder, EMA, resume=True, devices=2), fit(folder / "whole", EMA, devices=2)


def test_killed_on_two_ranks(tmp_path: Path) -> None:
    run_killed(fit, [(tmp_path, EMA, False, KILLED_AT, None, 2)] * 2)
    (resumed, first), (other, second) = run(both, [(tmp_path,)] * 2)
    assert_same(resumed, first, SAVED_AT)
    for found in (other, second):  # a checkpoint has the running statistics of rank 0 alone
        for part in ("trained", "seen"):
            found[part] = {step: weights(state) for step, state in found[part].items()}
        found["weights"] = weights(found["weights"])
    assert_same(other, second, SAVED_AT)
    assert same(second["weights"], weights(first["weights"]))
    expected = averaged([first["trained"][step] for step in range(4, 17)], 0.6)
    assert alike(first["weights"], expected)


def weights(state: State) -> State:
    return {
        name: value for name, value in state.items() if "running" not in name and "num" not in name
    }


# Sharded weights.


class Three(averaging.Net):
    """Three outputs, so that one of two ranks has more of them than the other."""

    def __init__(self) -> None:
        super().__init__(width=3)

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.net(batch)  # after which the root of sharded modules is left whole


class Sharded(Three):
    @override
    def configure_model(self) -> None:
        assert self.device_mesh is not None
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    @override
    def on_train_batch_end(self, *given: Any) -> None:
        super().on_train_batch_end(*given)
        self.trained = whole_of(self.trained)

    @override
    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.seen = whole_of(self.seen)


def whole_of(states: dict[int, State]) -> dict[int, State]:
    return {step: whole(state) for step, state in states.items()}


def whole(state: State) -> State:
    return {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in state.items()}


def fit_sharded(
    folder: Path,
    arguments: dict[str, Any],
    distributed: bool,
    resume: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    module, callback = Sharded(), WeightAveraging(**arguments)
    trainer = trainer_of(
        callback,
        saves(folder, every_n_train_steps=6),
        devices=2,
        strategy=ModelParallelStrategy(2, 1, save_distributed_checkpoint=distributed),
        **{"max_epochs": 4, **options},
    )
    trainer.fit(module, Loader(), VALIDATION, ckpt_path=resume and folder / resume)
    trainer.save_checkpoint(folder / "after.ckpt")
    found = {"trained": module.trained, "seen": module.seen, "averaged": callback.averaged}
    return found | {"weights": whole(state_of(module))}


def resumed_sharded(folder: Path, arguments: dict[str, Any], distributed: bool) -> list[Any]:
    return [
        fit_sharded(folder, arguments, distributed),
        fit_sharded(folder, arguments, distributed, "step=6.ckpt"),
        fit_sharded(folder, arguments, distributed, "after.ckpt", max_epochs=5),
        fit_sharded(folder, arguments, distributed, "after.ckpt", max_epochs=5),
    ]


def of_twice_the_batches(module: Three, arguments: dict[str, Any]) -> State:
    """Return the state that a module has if each rank has recomputed statistics over its batches.

    Each rank has the same ones, so the unbiased variance is that of each value twice.
    """
    state = state_of(module)
    if arguments.get("kind") == "swa":
        both = [one for one in averaging.BATCHES for _ in range(2)]
        recalibrate_batch_norm(module, both)
        state["net.1.running_var"] = state_of(module)["net.1.running_var"]
    return state


@pytest.mark.parametrize(("arguments", "distributed"), [(EMA, False), (SWA, True)])
def test_sharded(tmp_path: Path, arguments: dict[str, Any], distributed: bool) -> None:
    plain, longer = Three(), Three()  # each rank has the same batches, so this is the same
    averaging.fit(plain, WeightAveraging(**arguments))
    averaging.fit(longer, WeightAveraging(**arguments), max_epochs=5)
    for found in run(resumed_sharded, [(tmp_path, arguments, distributed)] * 2):
        for part, right in zip(found, (plain, plain, longer, longer), strict=True):
            assert all(same(s, right.trained[step]) for step, s in part["trained"].items())
            assert all(same(s, right.seen[step]) for step, s in part["seen"].items())
            assert alike(part["weights"], of_twice_the_batches(right, arguments))
        steps = [list(part["trained"]) for part in found]
        assert steps == [[*range(1, 17)], [*range(7, 17)], [*range(17, 21)], []]
    if not distributed:
        saved = torch.load(tmp_path / "step=6.ckpt", weights_only=True)
        expected = averaged([plain.trained[step] for step in (4, 5, 6)], 0.6, Three())
        assert alike(saved["state_dict"], expected)
        assert same(saved[KEY]["current"], plain.trained[6])
