"""The best weights on disk, by subclassing and by the callback."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import BestCheckpoint, EarlyStopping, WeightAveraging
from lightning_practices.mixins import CheckpointMixin, TrainingPractices
from tests import processes
from tests.callbacks.scripted import DIP, FILTERS, At, Scripted, loaders, same, state_of

pytestmark = FILTERS

BEST, LAST = 8, 32  # steps


class Noting(Scripted):
    """Notes the weights that it is tested with."""

    @override
    def forward(self, batch: Tensor) -> Tensor:
        output: Tensor = self.net(batch)
        return output

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.tested = state_of(self)


class Net(CheckpointMixin, Noting):
    pass


class Practised(TrainingPractices, Noting):
    """What it logs depends on its weights, which are the averages in validation."""

    @override
    def value(self) -> float:
        return super().value() + 1e-3 * sum(p.sum().item() for p in self.parameters())

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_of(root: Path, *callbacks: Callback, **options: Any) -> Trainer:
    """Return a Trainer as it is by default, but for what it prints."""
    defaults: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": 8}
    defaults |= {"logger": False, "default_root_dir": root}
    return Trainer(
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **defaults | options,
    )


def fit(module: LightningModule, trainer: Trainer, **options: Any) -> Trainer:
    trainer.fit(module, *loaders(), **options)
    return trainer


def checkpoints(trainer: Trainer) -> Sequence[Callback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]


def checkpoint_of(module: CheckpointMixin) -> ModelCheckpoint:
    assert module.checkpoint is not None
    return module.checkpoint


def weights_in(path: str | Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


# What is saved.


def test_best_is_the_best_and_last_the_last(tmp_path: Path) -> None:
    module = Net()
    trainer = fit(module, trainer_of(tmp_path))
    checkpoint = checkpoint_of(module)
    assert checkpoints(trainer) == [checkpoint]  # in place of the Trainer's
    assert checkpoint.best_model_score == 1.0
    trainer.test(module, loaders()[1], ckpt_path="best", verbose=False)
    assert same(module.tested, module.seen[BEST])
    assert not same(module.tested, module.seen[LAST])
    trainer.test(module, loaders()[1], ckpt_path="last", verbose=False)
    assert same(module.tested, module.seen[LAST])
    assert {path.name for path in Path(checkpoint.dirpath or "").iterdir()} == {
        "epoch=1-step=8.ckpt", "last.ckpt"
    }  # fmt: skip


@pytest.mark.filterwarnings("error:.*callbacks used to create the checkpoint")
def test_a_new_trainer_tests_it_without_a_warning(tmp_path: Path) -> None:
    module = Practised(weight_averaging="ema")
    fit(module, trainer_of(tmp_path))
    last = checkpoint_of(module).last_model_path
    for other in (module, Practised(weight_averaging="ema")):
        for run in ("test", "validate"):
            trainer = trainer_of(tmp_path)
            getattr(trainer, run)(other, loaders()[1], ckpt_path=last, verbose=False)
            assert same(state_of(other), weights_in(last))
    with pytest.raises(UserWarning, match="callbacks used to create the checkpoint"):
        trainer_of(tmp_path).test(Practised(), loaders()[1], ckpt_path=last, verbose=False)


def test_lightnings_own_saves_the_last_only_where_it_is_the_best(tmp_path: Path) -> None:
    """Why there is a subclass."""
    module = Net(checkpoint=ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True))
    fit(module, trainer_of(tmp_path))
    assert same(weights_in(tmp_path / "last.ckpt"), module.seen[BEST])


@pytest.mark.filterwarnings("ignore:monitor='val_loss' has mode='max'")
def test_a_value_that_is_to_rise(tmp_path: Path) -> None:
    module = Net(monitor="val_loss", mode="max")
    fit(module, trainer_of(tmp_path))
    checkpoint = checkpoint_of(module)
    assert checkpoint.best_model_score == 3.0
    assert same(weights_in(checkpoint.best_model_path), module.seen[4])


@pytest.mark.parametrize("interval", [1.0, 0.5])
@pytest.mark.parametrize(
    "averaging", [None, WeightAveraging(decay=0.8), "swa"], ids=["none", "ema", "swa"]
)
def test_it_is_what_early_stopping_gives_back(
    tmp_path: Path, averaging: Any, interval: float
) -> None:
    every = 4 if interval == 1.0 else 2
    module = Practised(
        [*DIP, *DIP], every=every, weight_averaging=averaging, early_stopping=4, schedule=None
    )
    trainer = fit(module, trainer_of(tmp_path, val_check_interval=interval))
    stopping, checkpoint = module.early_stopping, checkpoint_of(module)
    assert stopping is not None
    assert f"step={stopping.best_step}.ckpt" in checkpoint.best_model_path
    assert checkpoint.best_model_score == stopping.best_score
    assert stopping.best_step is not None
    best = module.seen[stopping.best_step]  # as it was validated
    saved = weights_in(checkpoint.best_model_path)
    trainer.test(module, loaders()[1], ckpt_path="best", verbose=False)
    assert same(saved, best)
    assert same(module.tested, best)


def test_without_validation_of_the_value(tmp_path: Path) -> None:
    class Silent(Net):
        @override
        def on_validation_epoch_end(self) -> None:
            pass

    with pytest.raises(Exception, match="BestCheckpoint watches 'val_loss', but neither"):
        fit(Silent(), trainer_of(tmp_path, num_sanity_val_steps=0))


# Beside the Trainer's.


def test_a_trainer_with_a_monitored_one(tmp_path: Path) -> None:
    module = Net()
    own = ModelCheckpoint(tmp_path, "own", monitor="val_loss", mode="max")
    trainer = fit(module, trainer_of(tmp_path, own))
    assert checkpoints(trainer) == [own]
    trainer.test(module, loaders()[1], ckpt_path="best", verbose=False)
    assert same(module.tested, module.seen[4])


def test_a_trainer_with_a_monitored_one_is_the_modules_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = Net()
    own = ModelCheckpoint(tmp_path, "own", monitor="val_loss", mode="max")
    with caplog.at_level("INFO"):
        fit(module, trainer_of(tmp_path, own))
    assert module.checkpoint is own
    assert caplog.text.count("so checkpoint=True adds no callback") == 1
    fit(module, trainer_of(tmp_path))
    assert isinstance(module.checkpoint, BestCheckpoint)


@pytest.mark.filterwarnings("ignore:.*multiple `ModelCheckpoint` callbacks")
def test_a_given_one_works_beside_a_trainers_monitored_one(tmp_path: Path) -> None:
    given = BestCheckpoint("val_loss", dirpath=tmp_path / "given")
    module = Net(checkpoint=given)
    own = ModelCheckpoint(tmp_path / "own", monitor="val_loss", mode="max")
    trainer = fit(module, trainer_of(tmp_path, own))
    assert checkpoints(trainer) == [module.checkpoint, own]
    assert same(weights_in(checkpoint_of(module).best_model_path), module.seen[BEST])
    assert same(weights_in(own.best_model_path), module.seen[4])
    trainer.test(module, loaders()[1], ckpt_path="best", verbose=False)
    assert same(module.tested, module.seen[BEST])


def test_a_given_one_with_the_key_of_the_trainers(tmp_path: Path) -> None:
    module = Net(checkpoint=BestCheckpoint("val_loss", dirpath=tmp_path / "given"))
    with pytest.raises(MisconfigurationException, match="the state of only one"):
        fit(module, trainer_of(tmp_path, BestCheckpoint("val_loss")))


@pytest.mark.filterwarnings("ignore:.*multiple `ModelCheckpoint` callbacks")
def test_a_trainer_with_one_that_saves_each_epoch(tmp_path: Path) -> None:
    module = Net()
    own = ModelCheckpoint(tmp_path / "own", "{step}", save_top_k=-1)
    trainer = trainer_of(tmp_path, own)
    for _ in range(2):  # each run asks for the callbacks
        trainer.validate(module, loaders()[1], verbose=False)
    fit(module, trainer)
    assert checkpoints(trainer) == [module.checkpoint, own]
    assert len([*(tmp_path / "own").iterdir()]) == 8
    trainer.test(module, loaders()[1], ckpt_path="best", verbose=False)
    assert same(module.tested, module.seen[BEST])
    assert checkpoints(trainer) == [module.checkpoint, own]


@pytest.mark.filterwarnings("ignore:.*multiple `ModelCheckpoint` callbacks")
@pytest.mark.parametrize(
    "option",
    [
        {"save_on_exception": True},
        {"enable_version_counter": False},
        {"auto_insert_metric_name": False},
        {"save_on_train_epoch_end": True},
        {"verbose": True},
    ],
    ids=str,
)
def test_any_option_tells_a_trainers_own_one_from_its_default(
    option: dict[str, bool], tmp_path: Path
) -> None:
    module, own = Net(), ModelCheckpoint(**option)  # type: ignore[arg-type]
    trainer = fit(module, trainer_of(tmp_path, own, max_epochs=1))
    assert checkpoints(trainer) == [module.checkpoint, own]


def test_a_trainer_that_saves_nothing(tmp_path: Path) -> None:
    trainer = fit(Net(), trainer_of(tmp_path, enable_checkpointing=False))
    assert not checkpoints(trainer)
    assert not [*tmp_path.rglob("*.ckpt")]
    trainer = trainer_of(tmp_path, fast_dev_run=True)
    fit(Net(), trainer)
    assert not [*tmp_path.rglob("*.ckpt")]


@pytest.mark.parametrize("given", [None, False])
def test_off(tmp_path: Path, given: Any) -> None:
    module = Net(checkpoint=given)
    trainer = fit(module, trainer_of(tmp_path))
    (checkpoint,) = checkpoints(trainer)
    assert type(checkpoint) is ModelCheckpoint
    assert module.checkpoint is None
    assert not [*tmp_path.rglob("last.ckpt")]


def test_the_callback_in_a_trainer_is_left_alone(tmp_path: Path) -> None:
    own = BestCheckpoint("val_loss", dirpath=tmp_path)
    trainer = fit(Net(), trainer_of(tmp_path, own))
    assert checkpoints(trainer) == [own]
    assert own.best_model_score == 1.0


def test_another_module_in_the_same_trainer_has_its_own(tmp_path: Path) -> None:
    first, second = Net(), Net([0.0] * 8 + [5.0, 4.0, 6.0, 6.0])
    trainer = fit(first, trainer_of(tmp_path))
    trainer.fit_loop.max_epochs = 12
    fit(second, trainer)
    assert checkpoints(trainer) == [second.checkpoint]
    assert checkpoint_of(second).best_model_score == 4.0  # though the first one had 1
    assert checkpoint_of(first).best_model_score == 1.0


def test_a_module_within_another_adds_nothing(tmp_path: Path) -> None:
    class Outer(Noting):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Net()

    trainer = fit(Outer(), trainer_of(tmp_path))
    assert [type(one) for one in checkpoints(trainer)] == [ModelCheckpoint]


# Resumed.

LATER = (3.0, 1.0, 2.0, 2.0, 0.5, 2.0, 2.0, 2.0)


def run(root: Path, values: tuple[float, ...], resume: Any, killed_at: int) -> dict[str, Any]:
    """Fit with a logger, each run of which has a new folder."""
    module = Practised(values, weight_averaging=WeightAveraging(decay=0.8), early_stopping=4)
    trainer = trainer_of(
        root, At(killed_at, processes.kill), logger=CSVLogger(root), log_every_n_steps=4
    )
    fit(module, trainer, ckpt_path=resume)
    checkpoint = checkpoint_of(module)
    return {
        "name": Path(checkpoint.best_model_path).name,
        "folder": Path(checkpoint.best_model_path).parents[1].name,
        "score": checkpoint.best_model_score,
        "weights": weights_in(checkpoint.best_model_path),
        "last": weights_in(checkpoint.last_model_path),
        "steps": trainer.global_step,
    }


@pytest.mark.parametrize(
    ("values", "folder"), [(DIP, "version_0"), (LATER, "version_1")], ids=["before", "after"]
)
def test_a_killed_fit_knows_the_best_value(
    tmp_path: Path, values: tuple[float, ...], folder: str
) -> None:
    whole = run(tmp_path / "whole", values, None, -1)
    processes.run_killed(run, [(tmp_path, values, None, 22)])
    last = next(tmp_path.glob("lightning_logs/version_0/checkpoints/last.ckpt"))
    assert torch.load(last, weights_only=True)["global_step"] == 20
    resumed = run(tmp_path, values, last, -1)
    assert (resumed["name"], resumed["score"]) == (whole["name"], whole["score"])
    assert resumed["folder"] == (folder if values is DIP else "version_0")
    assert resumed["steps"] == whole["steps"]
    assert same(resumed["weights"], whole["weights"])
    assert same(resumed["last"], whole["last"])


# A second fit.


def test_a_new_trainer_leaves_the_files_of_the_first(tmp_path: Path) -> None:
    module = Net()
    fit(module, trainer_of(tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=4, max_epochs=2))
    first = checkpoint_of(module)
    copied = copy.deepcopy(module)
    for again in (module, copied):
        again.values = [0.5] * 8
        fit(again, trainer_of(tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=4))
        second = checkpoint_of(again)
        assert Path(second.dirpath or "").parent.name != "version_0"
        assert second.best_model_score == 0.5
    folder = Path(first.best_model_path).parent
    assert folder.parent.name == "version_0"
    assert {path.name for path in folder.iterdir()} == {"epoch=1-step=8.ckpt", "last.ckpt"}
    assert first.best_model_score == 1.0


def test_new_trainers_in_one_folder_delete_nothing(tmp_path: Path) -> None:
    module = Net(checkpoint=BestCheckpoint("val_loss", dirpath=tmp_path))
    fit(module, trainer_of(tmp_path, max_epochs=2))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    module.values = [0.5, *DIP]  # better, so the first fit's best would be deleted
    fit(module, trainer_of(tmp_path, max_epochs=2))
    assert all(path.read_bytes() == content for path, content in before.items())
    assert checkpoint_of(module).best_model_score == 0.5


def test_the_same_trainer_goes_on(tmp_path: Path) -> None:
    module = Net()
    trainer = fit(module, trainer_of(tmp_path, max_epochs=2))
    first = checkpoint_of(module)
    trainer.fit_loop.max_epochs = 4
    fit(module, trainer)
    assert checkpoint_of(module) is first
    assert first.best_model_score == 1.0
    assert len([*tmp_path.rglob("*.ckpt")]) == 2


def test_a_new_trainer_that_only_tests_leaves_the_paths(tmp_path: Path) -> None:
    module = Net()
    fit(module, trainer_of(tmp_path))
    best = checkpoint_of(module).best_model_path
    trainer = trainer_of(tmp_path)
    trainer.test(module, loaders()[1], verbose=False)
    assert checkpoint_of(module).best_model_path == best
    module.values = [0.5] * 8
    fit(module, trainer)
    assert checkpoint_of(module).best_model_score == 0.5
    assert Path(best).exists()


# The last checkpoint, by name.


@pytest.mark.parametrize("folder", [False, True], ids=["without a logger", "dirpath"])
def test_last_resumes_in_a_new_module(tmp_path: Path, folder: bool) -> None:
    def new() -> tuple[Net, Trainer]:
        module = Net(checkpoint=BestCheckpoint("val_loss", dirpath=tmp_path) if folder else True)
        logger = CSVLogger(tmp_path / "logs") if folder else False
        return module, trainer_of(tmp_path, max_epochs=4, logger=logger, log_every_n_steps=4)

    module, trainer = new()
    trainer.fit_loop.max_epochs = 2
    with pytest.warns(UserWarning, match="there is no last checkpoint available"):
        fit(module, trainer, ckpt_path="last")
    resumed, trainer = new()
    fit(resumed, trainer, ckpt_path="last")
    assert min(resumed.seen) == 3 * 4
    assert checkpoint_of(resumed).best_model_score == 1.0
    assert {path.name for path in tmp_path.rglob("*.ckpt")} == {"epoch=1-step=8.ckpt", "last.ckpt"}


def test_last_names_the_path_if_each_run_has_a_new_folder(tmp_path: Path) -> None:
    def trainer() -> Trainer:
        return trainer_of(tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=4, max_epochs=2)

    fit(Net(), trainer())
    last = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    with pytest.raises(MisconfigurationException, match=f'give ckpt_path="{last}"'):
        fit(Net(), trainer(), ckpt_path="last")


# Loaded from a checkpoint.


def test_load_from_checkpoint_takes_the_argument(tmp_path: Path) -> None:
    class Width(Net):
        def __init__(self, width: int = 2, **practices: Any) -> None:
            super().__init__(width=width, **practices)
            self.save_hyperparameters()

    module = Width(3, checkpoint=BestCheckpoint("val_loss"))
    fit(module, trainer_of(tmp_path))
    path = checkpoint_of(module).last_model_path
    given = BestCheckpoint("accuracy", "max")
    loaded = Width.load_from_checkpoint(path, checkpoint=given, weights_only=True)
    assert checkpoint_of(loaded).monitor == "accuracy"
    assert same(state_of(loaded), state_of(module))
    assert Width.load_from_checkpoint(path, checkpoint=None).checkpoint is None
    with pytest.warns(UserWarning, match="leaves out checkpoint of Width"):
        assert checkpoint_of(Width.load_from_checkpoint(path)).monitor == "val_loss"
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        module.load_from_checkpoint(path)


# Several ranks.


class Ranks(Net):
    @override
    def value(self) -> float:
        # On average 2, 1, 3, 3, ...; on rank 0 alone it falls on.
        step = self.trainer.global_step // 4
        mean = (2.0, 1.0)[step - 1] if step < 3 else 3.0
        return mean + (-step if self.global_rank == 0 else step)


def two_ranks(root: Path) -> tuple[str, float, int | None]:
    rows = list(torch.randn(16, 2, generator=torch.Generator().manual_seed(1)))
    data: Any = DataLoader(rows, batch_size=2)  # type: ignore[arg-type]
    module, stopping = Ranks(), EarlyStopping("val_loss", patience=4)
    trainer = trainer_of(root, stopping, devices=2, strategy="ddp", max_epochs=4)
    trainer.fit(module, data, data)
    checkpoint = checkpoint_of(module)
    assert checkpoint.best_model_score is not None
    return checkpoint.best_model_path, checkpoint.best_model_score.item(), stopping.best_step


def test_all_ranks_save_by_the_mean(tmp_path: Path) -> None:
    for path, score, step in processes.run(two_ranks, [(tmp_path,)] * 2):
        assert (Path(path).name, score, step) == ("epoch=1-step=8.ckpt", 1.0, 8)
