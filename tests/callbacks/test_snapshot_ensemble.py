"""Snapshots of a fit's cycles: the rates, what is kept, and what is refused."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning_utilities.core import rank_zero
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset
from typing_extensions import override

from lightning_practices.callbacks import EarlyStopping, LearningRateScheduler, SnapshotEnsemble
from lightning_practices.ensembles import Ensemble
from lightning_practices.schedules import cosine_restarts
from tests.callbacks.scripted import FILTERS, At, fail, same, state_of, stop, trainer_of
from tests.callbacks.snapshots import (
    BATCHES,
    EPOCHS,
    RATES,
    Manual,
    Net,
    Notes,
    fit,
    loader,
    snapshots_of,
)

pytestmark = FILTERS
STEPS = BATCHES * EPOCHS


def scaled(steps: int, cycles: int, *more: float) -> list[list[float]]:
    factor = cosine_restarts(steps, cycles)
    return [[rate * factor(t) for rate in (*RATES, *more)] for t in range(steps)]


# Rates and snapshots.


@pytest.mark.parametrize("tensor_rates", [False, True])
@pytest.mark.parametrize(("cycles", "ends"), [(3, [8, 16, 24]), (5, [4, 9, 14, 19, 24])])
def test_rates_start_anew_and_each_cycles_state_is_kept(
    cycles: int, ends: list[int], tensor_rates: bool
) -> None:
    module, notes, snapshots = Net(tensor_rates), Notes(), SnapshotEnsemble(cycles)
    fit(module, snapshots, notes)
    assert [step for step, _ in notes.rates] == list(range(STEPS))
    rates = [rates for _, rates in notes.rates]
    expected = scaled(STEPS, cycles)
    if tensor_rates:
        torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected), rtol=1e-6, atol=0)
    else:
        assert rates == expected
    assert snapshots.steps_taken == ends
    kept = snapshots_of(snapshots, module)
    assert all(same(kept[step], notes.states[step]) for step in ends)
    assert len({float(state["net.0.weight"].sum()) for state in kept.values()}) == cycles
    assert same(state_of(module), notes.states[STEPS])  # the last, not the mean of all


def test_training_is_that_under_torchs_scheduler() -> None:
    class Scheduled(Net):
        @override
        def configure_optimizers(self) -> Any:
            optimizer = self.make_optimizer()
            scheduler = LambdaLR(optimizer, cosine_restarts(STEPS, 4))
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    fit(theirs := Scheduled())
    fit(ours := Net(), SnapshotEnsemble(4))
    assert same(state_of(ours), state_of(theirs))


@pytest.mark.parametrize(
    ("options", "callbacks", "steps"),
    [
        ({"accumulate_grad_batches": 2}, [], 12),
        ({"accumulate_grad_batches": 3}, [], 9),
        ({}, [GradientAccumulationScheduler({0: 1, 1: 4})], 12),
        ({"max_steps": 10}, [], 10),
        ({"max_epochs": -1, "max_steps": 10}, [], 10),
        ({"limit_train_batches": 4}, [], 12),
        ({"precision": "bf16-mixed"}, [], 24),
    ],
)
def test_optimizer_steps_are_counted(
    options: dict[str, Any], callbacks: list[Any], steps: int
) -> None:
    module, notes, snapshots = Net(), Notes(), SnapshotEnsemble(3)
    trainer = fit(module, snapshots, notes, *callbacks, **options)
    assert trainer.global_step == steps
    expected = scaled(steps, 3)
    assert [rates for _, rates in notes.rates] == [expected[step] for step, _ in notes.rates]
    assert snapshots.steps_taken == [steps // 3, 2 * steps // 3, steps]
    kept = snapshots_of(snapshots, module)
    assert all(same(kept[step], notes.states[step]) for step in kept)


def test_under_manual_optimization_the_steps_of_all_optimizers_count() -> None:
    module, notes, snapshots = Manual(), Notes(), SnapshotEnsemble(5, steps=36)
    trainer = fit(module, snapshots, notes)
    assert trainer.global_step == 36  # 3 at every 2 batches
    expected = scaled(36, 5, 0.3)
    assert [rates for _, rates in notes.rates] == [expected[step] for step, _ in notes.rates]
    # Ends after 7, 14, 21, 28 and 36 steps: seen once a batch has reached them.
    assert snapshots.steps_taken == [7, 15, 21, 28, 36]
    kept = snapshots_of(snapshots, module)
    assert all(same(kept[step], notes.states[step]) for step in kept)


@pytest.mark.parametrize("keep", [1, 2, 5, 9])
def test_only_the_last_ones_are_kept(keep: int) -> None:
    module, snapshots = Net(), SnapshotEnsemble(5, keep=keep)
    fit(module, snapshots)
    assert snapshots.steps_taken == [4, 9, 14, 19, 24][-keep:]
    fit(module := Net(), every := SnapshotEnsemble(5))
    kept, all_of_them = snapshots_of(snapshots, module), snapshots_of(every, module)
    assert all(same(state, all_of_them[step]) for step, state in kept.items())


def test_beyond_its_steps_such_cycles_go_on() -> None:
    module, notes, snapshots = Net(), Notes(), SnapshotEnsemble(2, steps=10)
    fit(module, snapshots, notes)
    assert snapshots.steps_taken == [5, 10, 15, 20]
    expected = (3 * scaled(10, 2))[:STEPS]
    assert [rates for _, rates in notes.rates] == expected


@pytest.mark.parametrize("callback", [At(13, stop), At(15, fail)])
def test_however_a_fit_ends_a_cycle_counts_at_its_end(callback: At) -> None:
    module, snapshots = Net(), SnapshotEnsemble(3)
    try:
        fit(module, snapshots, callback)
    except ValueError:
        assert callback.step == 15
    assert snapshots.steps_taken == [8]
    assert len(snapshots.members(module)) == 1


def test_fast_dev_run_has_one_cycle_and_the_sanity_check_none() -> None:
    module, snapshots = Net(), SnapshotEnsemble(5)
    fit(module, snapshots, fast_dev_run=True)
    assert snapshots.steps_taken == [1]
    assert same(snapshots_of(snapshots, module)[1], state_of(module))

    class Validated(Net):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            assert not (self.trainer.sanity_checking and snapshots.steps_taken)

    trainer = trainer_of(snapshots, max_epochs=1, num_sanity_val_steps=2)
    trainer.fit(Validated(), loader(), loader())
    assert len(snapshots.steps_taken) == 5


def test_the_rates_are_seen_by_lightnings_monitor(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    class Logger(CSVLogger):
        @override
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            seen.append({k: v for k, v in metrics.items() if k.startswith("lr")})

    callbacks: Any = [SnapshotEnsemble(3), LearningRateMonitor("step")]
    trainer = Trainer(
        callbacks=callbacks, logger=Logger(tmp_path), log_every_n_steps=1, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        max_epochs=EPOCHS, devices=1,
    )  # fmt: skip
    trainer.fit(Net(), loader())
    rates = [list(metrics.values()) for metrics in seen if metrics]
    assert rates == scaled(STEPS, 3)


def test_each_snapshot_is_reported_once() -> None:
    lines: list[str] = []

    class Listen(logging.Handler):
        @override
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = rank_zero.log, Listen()
    logger.addHandler(handler)
    try:
        fit(Net(), SnapshotEnsemble(2))
    finally:
        logger.removeHandler(handler)
    ours = [line for line in lines if "SnapshotEnsemble" in line]
    assert ours == [f"SnapshotEnsemble: snapshot of step {s}, cycle {s // 12}" for s in (12, 24)]


# Members.


def test_members_are_copies_for_an_ensemble() -> None:
    module, notes, snapshots = Net(), Notes(), SnapshotEnsemble(3)
    fit(module, snapshots, notes)
    x, before = torch.randn(5, 3), state_of(module)
    ensemble = Ensemble(snapshots.members(module), task="regression")
    expected = []
    for step in snapshots.steps_taken:
        single = Net().eval()
        single.load_state_dict(notes.states[step])
        expected.append(single(x))
    torch.testing.assert_close(ensemble(x), torch.stack(expected).mean(0), rtol=1e-6, atol=1e-7)
    for member in snapshots.members(module):
        with torch.no_grad():
            member.get_parameter("net.3.bias").fill_(9)
    assert same(state_of(module), before)
    assert torch.equal(Ensemble(snapshots.members(module), task="regression")(x), ensemble(x))


def test_members_of_a_module_that_keeps_its_last_activations() -> None:
    class Keeps(Net):
        @override
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.kept: Any = self(batch)  # with its graph, which torch can't copy
            return super().training_step(batch, batch_idx)

    module, snapshots = Keeps(), SnapshotEnsemble(3)
    fit(module, snapshots)
    members: Any = snapshots.members(module)
    assert same(state_of(members[-1]), state_of(module))
    for member in members:
        assert torch.equal(member.kept, module.kept)
        assert not member.kept.requires_grad


def test_there_is_none() -> None:
    class Wider(Net):
        def __init__(self) -> None:
            super().__init__()
            self.more = torch.nn.Linear(2, 2)

    with pytest.raises(RuntimeError, match="no cycle has come to its end"):
        SnapshotEnsemble().members(Net())
    module, snapshots = Net(), SnapshotEnsemble(2)
    fit(module, snapshots)
    with pytest.raises(RuntimeError, match="Missing key"):
        snapshots.members(Wider())


def test_a_fit_from_the_beginning_discards_earlier_ones() -> None:
    snapshots = SnapshotEnsemble(3)
    fit(Net(), snapshots)
    first = snapshots_of(snapshots, Net())
    fit(Net(), snapshots, At(9, stop))
    assert snapshots.steps_taken == [8]
    assert same(snapshots_of(snapshots, Net())[8], first[8])
    fit(Net(), snapshots, max_epochs=1)  # of another length
    assert snapshots.steps_taken == [2, 5, 8]


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"cycles": 0}, "cycles has to be a whole number from 1 on, but got 0"),
        ({"cycles": None}, "cycles has to be a whole number from 1 on, but got None"),
        ({"cycles": 2.0}, "cycles has to be a whole number"),
        ({"keep": 0}, "keep has to be a whole number from 1 on, but got 0"),
        ({"steps": True}, "steps has to be a whole number from 1 on, but got True"),
        ({"steps": 4}, "each cycle takes a step at least, but got 5 in 4 steps"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        SnapshotEnsemble(**arguments)


def test_another_scheduler() -> None:
    class Scheduled(Net):
        @override
        def configure_optimizers(self) -> Any:
            optimizer = self.make_optimizer()
            return [optimizer], [LambdaLR(optimizer, lambda t: 1.0)]

    with pytest.raises(MisconfigurationException, match="returns a LambdaLR, and Snapshot"):
        fit(Scheduled(), SnapshotEnsemble())


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("name", ["cosine", "plateau"])
def test_a_schedule_in_either_order(is_first: bool, name: Any) -> None:
    both = [LearningRateScheduler(name), SnapshotEnsemble(2)]
    message = rf"LearningRateScheduler\('{name}'\) and SnapshotEnsemble would both set"
    with pytest.raises(MisconfigurationException, match=message):
        fit(Net(), *(both if is_first else reversed(both)))


def test_a_length_that_does_not_do() -> None:
    class Endless(IterableDataset[Tensor]):
        def __iter__(self) -> Any:
            return iter(torch.randn(3, 4, 3).unbind(0))

    with pytest.raises(MisconfigurationException, match=r"takes 3 optimizer steps, fewer than.*5"):
        fit(Net(), SnapshotEnsemble(5), max_steps=3)
    with pytest.raises(MisconfigurationException, match=r"has no length.*Ensemble\(steps=...\)"):
        trainer_of(SnapshotEnsemble()).fit(Net(), DataLoader(Endless(), batch_size=None))
    with pytest.raises(MisconfigurationException, match=r"manual optimization the module decides"):
        fit(Manual(), SnapshotEnsemble())


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_sharded_weights(strategy: Any) -> None:
    trainer = trainer_of()
    trainer._accelerator_connector.strategy = strategy()  # Lightning makes some on GPUs only
    message = rf"{strategy.__name__}, which shards .*LightningEnsemble.from_checkpoints"
    with pytest.raises(MisconfigurationException, match=message):
        SnapshotEnsemble().setup(trainer, Net(), "fit")
    SnapshotEnsemble().setup(trainer, Net(), "test")


def test_two_of_them_and_the_twin_package() -> None:
    with pytest.raises(RuntimeError, match="Found more than one stateful callback of type"):
        trainer_of(SnapshotEnsemble(), SnapshotEnsemble(3))


def test_beside_other_practices(tmp_path: Path) -> None:
    class Scored(Net):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.log("val_loss", float(self.trainer.global_step == STEPS))  # worse at the end

    module, notes, snapshots = Scored(), Notes(), SnapshotEnsemble(3)
    saving = ModelCheckpoint(tmp_path)
    trainer = trainer_of(EarlyStopping("val_loss"), snapshots, notes, saving, max_epochs=EPOCHS)
    trainer.fit(module, loader(), loader())
    assert same(state_of(module), notes.states[8])  # the first of the best
    kept = snapshots_of(snapshots, module)
    assert all(same(kept[step], notes.states[step]) for step in (8, 16, 24))
