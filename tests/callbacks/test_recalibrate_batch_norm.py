"""Recalibration after real fits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import EarlyStopping, ProgressiveUnfreezing, RecalibrateBatchNorm
from lightning_practices.surgery import fuse
from tests import processes
from tests.callbacks.scripted import At, Scripted, fail, interrupt, same, state_of, trainer_of
from tests.surgery.test_recalibrate import assert_close, by_hand, statistics_of

WIDTH, BATCH = 3, 8


class Net(LightningModule):
    """Drifts fast, with statistics that follow slowly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net: Any = nn.Sequential(
            nn.Linear(WIDTH, 8), nn.BatchNorm1d(8, momentum=0.02), nn.ReLU(), nn.Dropout(0.2),
            nn.Linear(8, 8), nn.BatchNorm1d(8, momentum=0.02), nn.Linear(8, 1),
        )  # fmt: skip
        self.end: dict[str, Tensor] = {}  # the state in the module's own hook

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return loss(self, batch["x"] if isinstance(batch, dict) else batch)

    @override
    def on_train_end(self) -> None:
        self.end = state_of(self)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loss(module: Net, x: Tensor) -> Tensor:
    error: Tensor = module.net(x) - x.sin().sum(1, keepdim=True)
    return error.square().mean()


def rows(count: int = 64) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(3)) * 2 + 1


def loader(data: Any = None) -> DataLoader[Any]:
    items: Any = list(rows()) if data is None else data
    return DataLoader(items, batch_size=BATCH)


def fitted(
    module: LightningModule, *callbacks: Callback, data: Any = None, **options: Any
) -> Trainer:
    """Fit in float64, which the reference needs, unless told otherwise."""
    torch.manual_seed(5)
    trainer = trainer_of(*callbacks, **{"precision": "64-true", "max_epochs": 3, **options})
    trainer.fit(module, loader() if data is None else data)
    return trainer


def assert_recalibrated(net: Any, batches: Any) -> None:
    for i, exact in by_hand(net, batches).items():
        assert_close(statistics_of(net[i]), exact)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list in which this test's messages will be."""
    said: list[str] = []
    where = "lightning_practices.callbacks._recalibrate_batch_norm.rank_zero_info"
    monkeypatch.setattr(where, said.append)
    return said


# After a fit.


def test_statistics_match_the_weights_and_the_loss_falls(lines: list[str]) -> None:
    plain, module, new = Net(), Net(), rows(128)[64:].double()
    fitted(plain)
    fitted(module, RecalibrateBatchNorm())
    assert_recalibrated(module.net, rows().split(BATCH))
    assert all(map(torch.equal, module.parameters(), plain.parameters()))
    assert module.training
    assert [module.net[i].momentum for i in (1, 5)] == [0.02, 0.02]
    assert lines == ["RecalibrateBatchNorm: 2 batch norms have the statistics of the training set"]
    before, after = loss(plain.eval(), new), loss(module.eval(), new)
    assert after < before


def test_a_fit_goes_on_from_it() -> None:
    module = Net()
    trainer = fitted(module, RecalibrateBatchNorm())
    trainer.fit_loop.max_epochs = 5
    trainer.fit(module, loader())
    assert trainer.global_step == 5 * 8
    assert_recalibrated(module.net, rows().split(BATCH))


@pytest.mark.parametrize("first", [True, False])
def test_the_best_weights_are_recalibrated(first: bool) -> None:
    module, stopping = Scripted(), EarlyStopping("val_loss", patience=3)
    recalibrate = RecalibrateBatchNorm(lambda module, batch: module.net(batch))
    callbacks = [recalibrate, stopping] if first else [stopping, recalibrate]
    data = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    trainer = trainer_of(*callbacks, precision="64-true")
    trainer.fit(module, DataLoader(list(data), 2), DataLoader(list(data), 8))  # type: ignore[arg-type]
    assert trainer.global_step == 20
    best, state = module.seen[8], state_of(module)
    for name in best:
        assert torch.equal(state[name], best[name]) == ("running" not in name and "num" not in name)
    assert_recalibrated(module.net, data.split(2))


def test_averaged_weights_are_recalibrated() -> None:
    module, plain = Net(), Net()
    fitted(module, RecalibrateBatchNorm(), EMAWeightAveraging(decay=0.9))
    fitted(plain, EMAWeightAveraging(decay=0.9))
    assert torch.equal(module.net[0].weight, plain.net[0].weight)
    assert_recalibrated(module.net, rows().split(BATCH))


@pytest.mark.parametrize("compiled", [False, True])
def test_accelerated_and_compiled_modules(compiled: bool) -> None:
    module = Net()
    fuse(module)
    given: Any = torch.compile(module, backend="eager") if compiled else module
    fitted(given, RecalibrateBatchNorm())
    assert_recalibrated(module.net, rows().split(BATCH))


# The batches.


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"limit_train_batches": 3}, 3),
        ({"limit_train_batches": 0.5}, 4),
        ({"fast_dev_run": 2}, 2),
        ({"max_steps": 5, "max_epochs": -1}, 8),
        ({"overfit_batches": 2}, 2),
    ],
)
def test_an_epoch_is_what_the_trainer_makes_of_it(options: dict[str, Any], count: int) -> None:
    module = Net()
    fitted(module, RecalibrateBatchNorm(), **options)
    assert_recalibrated(module.net, rows().split(BATCH)[:count])


def test_a_loader_of_unknown_length() -> None:
    class Stream(torch.utils.data.IterableDataset[Tensor]):
        @override
        def __iter__(self) -> Iterator[Tensor]:
            return iter(rows())

    module = Net()
    fitted(module, RecalibrateBatchNorm(), data=loader(Stream()))
    assert_recalibrated(module.net, rows().split(BATCH))


def test_several_loaders() -> None:
    module, (a, b) = Net(), (loader(), loader(list(rows()[:24])))
    data = CombinedLoader({"x": a, "y": b}, "min_size")
    fitted(module, RecalibrateBatchNorm(lambda m, batch: m(batch["y"])), data=data)
    assert_recalibrated(module.net, rows()[:24].split(BATCH))


def test_batches_of_none_are_skipped_as_in_training() -> None:
    def collate(items: list[Tensor]) -> Tensor | None:
        return None if torch.equal(items[0], rows()[BATCH]) else torch.stack(items)

    module = Net()
    items: Any = list(rows())
    data = DataLoader(items, BATCH, collate_fn=collate)
    with pytest.warns(UserWarning, match="yielded None"):
        fitted(module, RecalibrateBatchNorm(), data=data)
    first, _, *others = rows().split(BATCH)
    assert_recalibrated(module.net, [first, *others])


class Hooks(Net):
    @override
    def on_before_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        assert dataloader_idx == 0
        return batch + 1

    @override
    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        return batch * 3 if self.training else batch * 2


def test_batches_come_through_the_hooks() -> None:
    module = Hooks()
    fitted(module, RecalibrateBatchNorm())
    assert_recalibrated(module.net, [(batch + 1) * 2 for batch in rows().double().split(BATCH)])


@pytest.mark.parametrize(("precision", "mixed"), [("bf16-mixed", True), ("32-true", False)])
def test_the_pass_has_the_precision_of_the_fit(precision: Any, mixed: bool) -> None:
    seen: list[bool] = []

    def forward(module: Net, batch: Tensor) -> None:
        seen.append(torch.is_autocast_enabled("cpu"))
        module(batch)

    fitted(Net(), RecalibrateBatchNorm(forward), precision=precision)
    assert seen == [mixed] * 8


def dicts() -> DataLoader[Any]:
    return loader([{"x": row} for row in rows()])


def test_dictionaries_need_forward_and_say_so_before_the_first_step() -> None:
    module = Net()
    trainer = trainer_of(RecalibrateBatchNorm(), precision="64-true")
    with pytest.raises(TypeError, match=r"type dict.*forward=lambda model, batch"):
        trainer.fit(module, dicts())
    assert trainer.global_step == 0
    fitted(module, RecalibrateBatchNorm(lambda m, batch: m(batch["x"])), data=dicts())
    assert_recalibrated(module.net, rows().split(BATCH))


def test_a_batch_norm_that_is_unfrozen_later_needs_forward_from_the_start() -> None:
    module = Net()
    phases: list[dict[str, Any]] = [{"blocks": [0], "until": {"step": 1}}, {"blocks": [1]}]
    unfreezing = ProgressiveUnfreezing(phases, by=[["net.6"], ["net.0", "net.1", "net.4", "net.5"]])
    trainer = trainer_of(RecalibrateBatchNorm(), unfreezing, precision="64-true")
    with pytest.raises(TypeError, match=r"type dict.*forward=lambda model, batch"):
        trainer.fit(module, dicts())
    assert trainer.global_step == 0


def test_a_module_without_forward_is_refused_when_the_fit_starts() -> None:
    trainer = trainer_of(RecalibrateBatchNorm())
    with pytest.raises(MisconfigurationException, match="Scripted has no `forward`"):
        trainer.fit(Scripted(), loader(), loader())
    assert trainer.global_step == 0


# When there is nothing to do, or something goes wrong.


def test_an_interrupted_or_failed_fit_is_left_alone() -> None:
    for act, ends in ((interrupt, SystemExit), (fail, ValueError)):
        states = []
        for callbacks in ([RecalibrateBatchNorm(lambda *_: pytest.fail("it ran"))], []):
            module = Net()
            with pytest.raises(ends):
                fitted(module, At(10, act), *callbacks)
            states.append(state_of(module))
        assert same(*states)


def test_an_error_in_the_pass_leaves_what_was_trained() -> None:
    module, plain = Net(), Net()

    def forward(module: Net, batch: Tensor) -> None:
        module(batch)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory") as caught:
        fitted(module, RecalibrateBatchNorm(forward))
    assert "none has changed" in caught.value.__notes__[0]
    fitted(plain)
    assert same(state_of(module), state_of(plain))
    assert module.training


def test_frozen_batch_norms_stay() -> None:
    module = Net()
    module.net[1].eval()
    module.net[1].running_mean += 0.5
    with pytest.warns(UserWarning, match="in eval mode at the start of training"):
        fitted(module, RecalibrateBatchNorm())
    assert torch.equal(module.net[1].running_mean, torch.full((8,), 0.5).double())
    assert int(module.net[1].num_batches_tracked) == 0
    assert int(module.net[5].num_batches_tracked) == 8


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
@pytest.mark.parametrize(
    "layer", [nn.ReLU(), nn.BatchNorm1d(8, track_running_stats=False), nn.BatchNorm1d(8).eval()]
)
def test_without_statistics_to_recompute_nothing_is_run(layer: nn.Module, lines: list[str]) -> None:
    module = Net()  # whose batches nobody says how to run
    module.net = nn.Sequential(nn.Linear(WIDTH, 8), layer, nn.Linear(8, 1))
    module.train(layer.training)
    trainer = fitted(module, RecalibrateBatchNorm(), data=dicts())
    assert trainer.global_step == 3 * 8
    (line,) = lines
    assert "nothing to do" in line


def test_sharded_weights() -> None:
    trainer = trainer_of()
    trainer._accelerator_connector.strategy = FSDPStrategy()  # Lightning makes it on GPUs only
    with pytest.raises(MisconfigurationException, match=r"FSDPStrategy, which shards.*: use Mod"):
        RecalibrateBatchNorm().setup(trainer, Net(), "fit")
    RecalibrateBatchNorm().setup(trainer, Net(), "validate")


# What is saved and shown.


def test_which_checkpoints_hold_it(tmp_path: Path) -> None:
    module, saved = Net(), ModelCheckpoint(tmp_path, save_last=True)
    trainer = fitted(module, saved, RecalibrateBatchNorm())
    assert same(module.end, state_of(module))
    in_training = torch.load(saved.last_model_path)["state_dict"]
    assert torch.equal(in_training["net.0.weight"], module.net[0].weight)
    assert not torch.equal(in_training["net.1.running_var"], module.net[1].running_var)
    trainer.save_checkpoint(tmp_path / "final.ckpt")
    assert same(torch.load(tmp_path / "final.ckpt")["state_dict"], state_of(module))


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_shown_where_the_fits_is(
    shown: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "max_epochs": 1}
    trainer = Trainer(callbacks=[RecalibrateBatchNorm()], enable_progress_bar=shown, **options)
    trainer.fit(Net(), loader())
    assert ("Recalibrating batch norm" in capfd.readouterr().err) == shown


# Two ranks.


class Sharded(Net):
    @override
    def configure_model(self) -> None:
        assert self.device_mesh is not None
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


@pytest.mark.parametrize("strategy", ["ddp", "model_parallel"])
def test_two_ranks_agree(strategy: str, capsys: pytest.CaptureFixture[str]) -> None:
    ranks = processes.run(fit_on_two_ranks, [(strategy,)] * 2)
    assert same(ranks[0]["state"], ranks[1]["state"])
    batches = [batch for rank in ranks for batch in rank["passed"]]
    seen, whole = (x[x[:, 0].argsort()] for x in (torch.cat(batches), rows().double()))
    assert torch.equal(seen, whole)  # each row once
    module = Net().double()
    module.load_state_dict(ranks[0]["state"])
    assert_recalibrated(module.net, batches)
    assert capsys.readouterr().out.count("RecalibrateBatchNorm:") == 1


def fit_on_two_ranks(strategy: Any) -> dict[str, Any]:
    module, passed, precision = Net(), [], "64-true"
    if strategy == "model_parallel":  # which has no "64-true"
        module, precision, strategy = Sharded().double(), "32-true", ModelParallelStrategy(2, 1)

    def forward(module: Net, batch: Tensor) -> None:
        passed.append(batch)
        module(batch)

    data = loader(list(rows().double()))
    options = {"devices": 2, "strategy": strategy, "precision": precision}
    fitted(module, RecalibrateBatchNorm(forward), data=data, **options)
    state = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in state_of(module).items()
    }
    return {"state": state, "passed": passed}
