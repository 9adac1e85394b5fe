"""Learning curves over several fits and on two ranks."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate
from torchmetrics import MeanMetric
from typing_extensions import override

from lightning_practices.callbacks import LearningCurves
from lightning_practices.callbacks._curves import learning_curves as _learning_curves
from lightning_practices.callbacks._curves.listener import Listener
from tests import processes
from tests.callbacks.curves import Drawn, Logged, curves_in, fit, loaders, stand_in, trainer_of
from tests.callbacks.scripted import FILTERS, At, fail, saves

pytestmark = FILTERS


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    return stand_in(monkeypatch)


# Checkpoints.


@pytest.mark.parametrize("at_train_epoch_end", [True, False])
@pytest.mark.usefixtures("drawn")
def test_a_resumed_fit_continues_the_curves(tmp_path: Path, at_train_epoch_end: bool) -> None:
    whole = curves_in(tmp_path, every_n_train_steps=5)
    save = saves(tmp_path, save_on_train_epoch_end=at_train_epoch_end)
    fit(Logged(), whole, save, max_epochs=4)
    resumed = curves_in(tmp_path, every_n_train_steps=5)
    fit(Logged(), resumed, max_epochs=4, resume=tmp_path / "step=8.ckpt")
    expected, got = whole.history, resumed.history
    if not at_train_epoch_end:  # saved before the epoch's end
        for history in (expected, got):
            for name in ("epoch", "late", "train_loss_epoch"):
                history[name] = [point for point in history[name] if point[0] != 8]
    assert got == expected
    assert (resumed.best_step, resumed.best_score) == (8, 1.0)


@pytest.mark.usefixtures("drawn")
def test_going_back_forgets_what_came_after(tmp_path: Path) -> None:
    curves = curves_in(tmp_path, every_n_train_steps=1)
    module = Logged()
    trainer = fit(module, curves, saves(tmp_path, save_on_train_epoch_end=True))
    expected = curves.history
    trainer.fit(module, *loaders(), ckpt_path=tmp_path / "step=4.ckpt")
    assert curves.history == expected


@pytest.mark.usefixtures("drawn")
def test_a_checkpoint_within_an_epoch_changes_nothing(tmp_path: Path) -> None:
    plain = curves_in(tmp_path, every_n_train_steps=3)
    fit(Logged(), plain)
    saved = curves_in(tmp_path, every_n_train_steps=3)
    fit(Logged(), saved, saves(tmp_path, every_n_train_steps=1))
    assert saved.history == plain.history
    checkpoint = torch.load(tmp_path / "step=7.ckpt", weights_only=True)
    state = checkpoint["callbacks"][saved.state_key]
    assert state["series"]["train_loss_step"]["bins"][:, 0].tolist() == [1, 3, 4, 6]


def test_a_fit_that_is_complete_is_drawn_again(tmp_path: Path, drawn: Drawn) -> None:
    fit(Logged(), curves_in(tmp_path), saves(tmp_path, save_on_train_epoch_end=True))
    (tmp_path / "curves.png").unlink()
    curves = curves_in(tmp_path)
    fit(Logged(), curves, resume=tmp_path / "step=12.ckpt")
    assert (tmp_path / "curves.png").exists()
    assert drawn.best == [("val_loss", 8, 1.0)] * 2


@pytest.mark.usefixtures("drawn")
def test_two_pictures_of_one_fit(tmp_path: Path) -> None:
    page = LearningCurves(tmp_path / "curves.html", metrics=["val_loss"])
    picture = curves_in(tmp_path)
    assert page.state_key != picture.state_key
    fit(Logged(), page, picture)
    assert page.history["val_loss"] == picture.history["val_loss"]
    assert {path.name for path in tmp_path.iterdir()} == {"curves.html", "curves.png"}
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `LearningCu"):
        trainer_of(curves_in(tmp_path), curves_in(tmp_path))


@pytest.mark.usefixtures("drawn")
def test_it_can_be_pickled_after_a_fit(tmp_path: Path) -> None:
    fit(Logged(), curves := curves_in(tmp_path))
    assert pickle.loads(pickle.dumps(curves)).history == curves.history


def test_an_exception_that_the_device_raised_too(
    tmp_path: Path, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    def breaks(trainer: Trainer) -> None:
        monkeypatch.setattr(torch, "stack", broken)
        fail(trainer)

    curves = curves_in(tmp_path, every_n_train_steps=1)
    with (
        pytest.warns(UserWarning, match="has lost the last values: RuntimeError: CUDA error: dev"),
        pytest.raises(ValueError, match="a user's mistake"),
    ):
        fit(Logged(), At(6, lambda _: curves.history), At(7, breaks), curves)
    assert drawn.steps == [7]
    assert curves.history["train_loss_step"] == [(t, float(t)) for t in range(1, 7)]


# Two ranks.


class Uneven(Logged):
    """Logs other values on each rank, also by a metric that gathers them."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.mean.update(float(self.trainer.global_rank))
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.log("rank", float(self.trainer.global_rank), on_step=True, on_epoch=False)
        self.log("all", float(self.trainer.global_rank), sync_dist=True)
        return super().training_step(batch, batch_idx)


def test_rank_0_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = processes.run(fit_on_two_ranks, [(tmp_path,)] * 2)
    assert first["history"]["mean"] == [(2, 0.5), (4, 0.5)]
    assert first["history"]["rank"] == [(t, 0.0) for t in range(1, 5)]
    assert first["history"]["all"] == [(t, 0.5) for t in range(1, 5)]
    assert first["history"]["val_loss"] == [(2, 3.0), (4, 1.0)]
    assert first["file"] == second["file"] == str(tmp_path / "curves.png")
    assert second["history"] == {}
    assert (first["written"], second["written"]) == (2, 0)
    assert first["distributed"] == {"whole": [(1, 1.0), (2, 2.0)], "parts": [(1, 12.0), (2, 14.0)]}
    assert second["distributed"] == {}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("LearningCurves:") == 2
    # The checkpoint is rank 0's.
    state = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["callbacks"]
    (key,) = (key for key in state if key.startswith("LearningCurves"))
    assert state[key]["series"]["late"]["bins"].shape == (1, 6)


def fit_on_two_ranks(folder: Path) -> dict[str, Any]:
    curves = LearningCurves("curves.png", every_n_train_steps=1)
    stopping = LightningEarlyStopping("val_loss")
    save = saves(folder, save_on_train_epoch_end=True)
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp", "default_root_dir": folder}
    written: list[Path] = []
    module: Any = _learning_curves
    put = module.write_file

    def noted(file: Path, content: bytes) -> None:
        written.append(file)
        put(file, content)

    module.write_file = noted
    fit(Uneven(), curves, stopping, save, max_epochs=2, **options)
    again = LearningCurves("curves.png")  # each rank loads the checkpoint
    fit(Uneven(), again, resume=folder / "step=4.ckpt", max_epochs=2, **options)
    return {
        "history": curves.history,
        "file": str(curves.file),
        "written": len(written),
        "distributed": listen_to_distributed_values(),  # while there is a group
    }


def listen_to_distributed_values() -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2,))
    rank = dist.get_rank()
    listener = Listener(lambda name: True)
    for step in (1, 2):
        values = {
            "whole": DTensor.from_local(torch.tensor(float(step)), mesh, [Replicate()]),
            "parts": DTensor.from_local(torch.tensor(step + 10.0 * rank), mesh, [Partial()]),
        }
        trainer: Any = SimpleNamespace(
            callback_metrics=values, optimizers=[], is_global_zero=rank == 0, global_step=step
        )
        listener.listen(trainer)
        listener.listen(trainer)  # nothing is new
    return {name: series.points() for name, series in listener.history.series().items()}
