"""Monte Carlo dropout by subclassing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_practices.ensembles import (
    MonteCarloDropout,
    MonteCarloPrediction,
    monte_carlo_dropout,
)
from lightning_practices.mixins import MonteCarloDropoutMixin
from tests import processes


class Base(LightningModule):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, 3)
        )

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch).square().mean()  # type: ignore[no-any-return]

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("loss", self(batch).square().mean())

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Net(MonteCarloDropoutMixin, Base):
    def __init__(self, monte_carlo_dropout: Any = "multiclass", **kwargs: Any) -> None:
        super().__init__(monte_carlo_dropout=monte_carlo_dropout, **kwargs)


def samples() -> Tensor:
    return torch.randn(10, 4, generator=torch.Generator().manual_seed(1))


def loader(rows: Any = slice(None), batch_size: int = 4) -> DataLoader[Tensor]:
    return DataLoader(samples()[rows], batch_size=batch_size)  # type: ignore[arg-type]


def trainer(**options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, "max_epochs": 1}
    return Trainer(**{**defaults, **quiet, **options})


def predicted(module: LightningModule, data: Any, **options: Any) -> MonteCarloPrediction:
    """Predict, and join the batches."""
    return joined(trainer(**options).predict(module, data))


def joined(batches: Any) -> MonteCarloPrediction:
    for batch in batches:
        assert isinstance(batch, MonteCarloPrediction)
    parts = zip(*batches, strict=True)
    return MonteCarloPrediction(
        *(None if part[0] is None else torch.cat(part) for part in parts)  # type: ignore[arg-type]
    )


def assert_same(got: MonteCarloPrediction, expected: MonteCarloPrediction) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        if theirs is None:
            assert ours is None
        else:  # float32, batched differently
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_trainer_predicts_what_the_function_does() -> None:
    module = Net(MonteCarloDropout("multiclass", passes=7, seed=3, max_batch_size=12), width=8)
    assert module.net[0].out_features == 8
    sizes: list[int] = []
    module.net.register_forward_pre_hook(lambda net, args: sizes.append(len(args[0])))
    module.net[2].eval()
    modes = [each.training for each in module.modules()]
    got = predicted(module, loader())
    assert sizes == [12, 12, 4, 12, 12, 4, 12, 2]
    assert [each.training for each in module.modules()] == modes
    assert_same(got, monte_carlo_dropout(module, samples(), task="multiclass", passes=7, seed=3))
    assert got.std.min() > 0


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_tasks(task: Any) -> None:
    module = Net(task)
    expected = monte_carlo_dropout(module, samples(), task=task)
    assert_same(predicted(module, loader()), expected)


def test_order_and_batch_size_change_nothing() -> None:
    module = Net()
    whole = predicted(module, loader(batch_size=10))
    assert_same(predicted(module, loader(batch_size=1)), whole)
    order = torch.randperm(10)
    shuffled = predicted(module, loader(order, batch_size=3))
    assert_same(shuffled, MonteCarloPrediction(*(t[order] for t in whole)))  # type: ignore[index]


def test_none_predicts_without_dropout() -> None:
    module = Net(None).eval()
    outputs: Any = trainer().predict(module, loader(batch_size=10))
    torch.testing.assert_close(outputs[0], module(samples()))


class Reading(Base):
    """Decides itself how a batch is read."""

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert batch_idx in (0, 1, 2)
        return 2 * self(batch["image"])  # type: ignore[no-any-return]


class ReadingNet(MonteCarloDropoutMixin, Reading):
    pass


class Short(Base):
    @override
    def predict_step(self, batch: Tensor) -> Tensor:  # Lightning allows it
        return self(batch)  # type: ignore[no-any-return]


class ShortNet(MonteCarloDropoutMixin, Short):
    pass


def test_the_modules_own_step_reads_the_batch() -> None:
    module = ReadingNet(monte_carlo_dropout="multiclass")
    data: Any = [{"image": x, "name": "x"} for x in samples()]
    expected = monte_carlo_dropout(
        module, samples(), task="multiclass", forward=lambda x: 2 * module(x)
    )
    assert_same(predicted(module, DataLoader(data, batch_size=4)), expected)
    short = ShortNet(monte_carlo_dropout="multiclass")
    expected = monte_carlo_dropout(short, samples(), task="multiclass")
    assert_same(predicted(short, loader()), expected)


class Own(MonteCarloDropoutMixin, Base):
    """Overrides the mixin's step, and calls it with a part of the batch."""

    @override
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        x, y = batch
        return y, super().predict_step(x, batch_idx)


def test_a_step_of_the_class_itself_gets_the_prediction() -> None:
    module = Own(monte_carlo_dropout="multiclass")
    data = DataLoader(TensorDataset(samples(), torch.arange(10)), batch_size=4)
    batches: Any = trainer().predict(module, data)
    assert torch.cat([y for y, _ in batches]).tolist() == list(range(10))
    expected = monte_carlo_dropout(module, samples(), task="multiclass")
    assert_same(joined([prediction for _, prediction in batches]), expected)


def test_several_loaders() -> None:
    module = Net()
    first, second = trainer().predict(module, [loader(), loader(slice(0, 3))])  # type: ignore[misc]
    assert_same(joined(second), MonteCarloPrediction(*(t[:3] for t in joined(first))))  # type: ignore[index]


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_precisions(precision: Any) -> None:
    module = Net()
    module.eval()
    got = predicted(module, loader(), precision=precision)
    assert got.mean.dtype == (torch.float64 if precision == "64-true" else torch.float32)
    exact = monte_carlo_dropout(module.double(), samples().double(), task="multiclass")
    rounding = 1e-6 if precision == "64-true" else 10 * torch.finfo(torch.bfloat16).eps
    assert (got.mean - exact.mean).abs().max() < rounding
    sums = got.mean.sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=1e-6, atol=0)


def test_fits_and_checkpoints_are_those_of_the_plain_module(tmp_path: Path) -> None:
    plain, module, path = Base(), Net(), tmp_path / "last.ckpt"
    module.load_state_dict(plain.state_dict())
    losses = []
    for each in (plain, module):
        run = trainer()
        torch.manual_seed(2)
        run.fit(each, loader(), loader())
        losses.append(run.callback_metrics["loss"])
        run.save_checkpoint(path)
    assert torch.equal(*losses)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name])
    loaded = Net.load_from_checkpoint(path, weights_only=True)
    assert_same(predicted(loaded, loader()), predicted(module, loader()))


def test_an_object_is_given_again_to_a_loaded_module(tmp_path: Path) -> None:
    class Required(MonteCarloDropoutMixin, Base):
        def __init__(self, width: int = 16, **practices: Any) -> None:
            super().__init__(width=width, **practices)
            self.save_hyperparameters()

    module = Required(monte_carlo_dropout=MonteCarloDropout("regression"))
    run, path = trainer(), tmp_path / "last.ckpt"
    run.fit(module, loader(), loader())
    run.save_checkpoint(path)
    again = r"Required\.load_from_checkpoint\(path, monte_carlo_dropout=\.\.\.\)"
    with pytest.raises(TypeError, match=again):
        Required.load_from_checkpoint(path)
    given = MonteCarloDropout("regression")
    loaded = Required.load_from_checkpoint(path, monte_carlo_dropout=given)
    assert_same(predicted(loaded, loader()), predicted(module, loader()))


def test_compiled_by_lightning() -> None:
    module = Net()
    expected = predicted(module, loader())
    compiled: Any = torch.compile(module, backend="eager")
    assert_same(predicted(compiled, loader()), expected)
    torch.compiler.reset()


def test_errors_reach_the_user() -> None:
    module = Net()
    module.net[2] = nn.Dropout(0.0)
    with pytest.raises(RuntimeError, match="no layer of Net drops"):
        predicted(module, loader())
    with pytest.raises(ValueError, match="'regression', but got 'softmax'"):
        predicted(Net("softmax"), loader())
    with pytest.raises(TypeError, match="monte_carlo_dropout"):
        type("Without", (MonteCarloDropoutMixin, LightningModule), {})()


class Writer(BasePredictionWriter):
    """Writes each prediction beside the index of its sample."""

    def __init__(self, root: Path) -> None:
        super().__init__("epoch")
        self.root = root

    @override
    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        indices = torch.tensor([index for batch in batch_indices[0] for index in batch])
        torch.save((indices, tuple(joined(predictions))), self.root / f"{trainer.global_rank}.pt")


def predict_into(root: Path, processes: int) -> None:
    torch.manual_seed(7)
    module = Net()
    options: dict[str, Any] = {"devices": processes, "callbacks": [Writer(root)]}
    if processes > 1:
        options["strategy"] = "ddp"
    torch.manual_seed(processes)  # the generators of ranks differ, too
    trainer(**options).predict(module, loader(batch_size=10 // processes - 2))


def test_two_processes_predict_the_same(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    predict_into(alone, 1)
    processes.run(predict_into, [(together, 2)] * 2)
    ((order, expected),) = (torch.load(path) for path in alone.iterdir())
    assert order.tolist() == list(range(10))
    seen = set()
    for path in together.iterdir():
        indices, got = torch.load(path)
        assert len(indices) == 5
        seen.update(indices.tolist())
        assert_same(
            MonteCarloPrediction(*got), MonteCarloPrediction(*(t[indices] for t in expected))
        )
    assert seen == set(range(10))
