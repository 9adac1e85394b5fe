"""Checkpoints of a module load in its own class and in the class that it extends, both ways."""

import threading
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices import mixins
from lightning_practices.callbacks import EarlyStopping, GradientClipping
from lightning_practices.optim import Optimizer

KEY, OWN = "hyper_parameters", "lightning_practices_arguments"


class Saving(LightningModule):
    """A base that saves the arguments of all constructors, as torchgeo's tasks do."""

    saves = True

    def __init__(self, sizes: list[int]) -> None:  # not an argument of the task
        super().__init__()
        if self.saves:
            self.save_hyperparameters(ignore="weights")
        torch.manual_seed(sum(sizes))
        self.net = nn.Linear(sizes[0], sizes[1])

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch).square().mean()
        return loss


class Task(Saving):
    def __init__(
        self, hidden: int = 3, outputs: int = 1, lr: float = 0.5, weights: Any = None
    ) -> None:
        self.weights = weights
        super().__init__([hidden, outputs])


class Quiet(Task):
    """The same, of which nothing is saved."""

    saves = False


class Forecast(LightningModule):
    """A base with arguments of its own, as pytorch-forecasting's models have."""

    def __init__(self, learning_rate: float = 0.1, optimizer: Any = "adam") -> None:
        super().__init__()
        self.save_hyperparameters({"learning_rate": learning_rate, "optimizer": optimizer})
        self.optimizer = optimizer


class Transformer(Forecast):
    def __init__(self, hidden: int = 3, sizes: list[int] | None = None, **kwargs: Any) -> None:
        sizes = [hidden] if sizes is None else sizes
        self.save_hyperparameters()
        super().__init__(**kwargs)
        self.net = nn.Linear(hidden, len(sizes))


class Bare(mixins.OptimizerMixin, mixins.EarlyStoppingMixin, mixins.GradientClippingMixin, Task):
    pass


class Derived(Bare):
    """A class that derives an argument of the next class from one of its own."""

    def __init__(self, width: int, **practices: Any) -> None:
        super().__init__(hidden=2 * width, **practices)


class Both(Derived):
    def __init__(self, width: int = 4, **practices: Any) -> None:
        super().__init__(width, **practices)
        self.save_hyperparameters()


class Scaled(Bare):
    """A class that passes on another value under the same name."""

    def __init__(self, hidden: int, **practices: Any) -> None:
        super().__init__(hidden=2 * hidden, **practices)


class ScaledBoth(Scaled):
    def __init__(self, hidden: int, **practices: Any) -> None:
        super().__init__(hidden=hidden, **practices)
        self.save_hyperparameters()


class Rate(Bare):
    """A class with an argument of the same name and value as the next class's."""

    def __init__(self, lr: float = 0.5, **others: Any) -> None:
        super().__init__(lr=lr, **others)


class Alone(mixins.OptimizerMixin, mixins.EarlyStoppingMixin, Quiet):
    """A class that saves, unlike the next class."""

    def __init__(self, width: int, hidden: int = 3, **practices: Any) -> None:
        super().__init__(hidden=hidden, **practices)
        self.save_hyperparameters()


class Hooked(Derived):
    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY]["width"] == 2
        checkpoint[KEY]["hidden"] = 4


class Mine(mixins.OptimizerMixin, mixins.EarlyStoppingMixin, Transformer):
    pass


def saved(module: LightningModule, folder: Path) -> Path:
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.strategy.connect(module)
    trainer.save_checkpoint(folder / "net.ckpt", weights_only=True)
    return folder / "net.ckpt"


def held(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def same(module: Any, other: Any) -> bool:
    return bool(module.net.weight.equal(other.net.weight))


@pytest.mark.parametrize(
    ("kind", "given", "hidden"),
    [
        (Bare, {"hidden": 4}, 4),
        (Bare, {}, 3),
        (Derived, {"width": 2}, 4),
        (Both, {"width": 2}, 4),
        (Both, {}, 8),
        (Scaled, {"hidden": 2}, 4),
        (ScaledBoth, {"hidden": 2}, 4),
        (Rate, {"lr": 0.25, "hidden": 4}, 4),
        (Hooked, {"width": 2}, 4),
    ],
)
def test_own_checkpoints_in_both_classes(
    kind: type[Any], given: dict[str, Any], hidden: int, tmp_path: Path
) -> None:
    module = kind(**given, early_stopping=7, optimizer="sgd")
    path = saved(module, tmp_path)
    own = {**given, "early_stopping": 7, "optimizer": "sgd"}
    assert held(path)[OWN].items() >= own.items()
    theirs = {"hidden": hidden, "outputs": 1, "lr": given.get("lr", 0.5)}
    assert {n: held(path)[KEY][n] for n in theirs} == theirs
    assert not {"monitor", "early_stopping", "width", "weights"} & held(path)[KEY].keys()
    loaded = kind.load_from_checkpoint(path, weights_only=True)
    assert same(loaded, module)
    assert (loaded.early_stopping.patience, loaded._optimizer.name) == (7, "sgd")
    assert loaded.hparams == module.hparams
    again = kind.load_from_checkpoint(path, early_stopping=9, monitor="loss", map_location="cpu")
    assert (again.early_stopping.patience, again.early_stopping.monitor) == (9, "loss")
    plain = Task.load_from_checkpoint(path, weights_only=True)
    assert type(plain) is Task
    assert same(plain, module)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Bare, {}),
        (Rate, {}),
        (Derived, {"width": 2}),
        (Both, {"width": 2}),
        (Scaled, {"hidden": 2}),
    ],
)
def test_checkpoints_of_the_next_class(
    kind: type[Any], given: dict[str, Any], tmp_path: Path
) -> None:
    plain = Task(hidden=4, lr=0.25)
    path = saved(plain, tmp_path)
    loaded = kind.load_from_checkpoint(path, early_stopping=7, weights_only=True, **given)
    assert same(loaded, plain)
    assert loaded.hparams["lr"] == 0.25
    assert loaded.early_stopping.patience == 7
    assert kind.load_from_checkpoint(path, **given).early_stopping.patience == 10
    with path.open("rb") as file:
        assert same(kind.load_from_checkpoint(file, **given), plain)


def test_the_next_class_saves_as_alone() -> None:
    module = Bare(hidden=4, early_stopping=7)
    theirs = Task(hidden=4).hparams
    assert {name: module.hparams[name] for name in theirs} == theirs
    assert module.hparams["early_stopping"] == module.hparams_initial["early_stopping"] == 7
    assert Scaled(hidden=2).hparams["hidden"] == 4


def test_a_class_that_saves_unlike_the_next_class(tmp_path: Path) -> None:
    module = Alone(width=1, hidden=4, early_stopping=7)
    path = saved(module, tmp_path)
    assert held(path)[KEY] == {"hidden": 4}
    assert held(path)[OWN] == {"width": 1, "hidden": 4, "early_stopping": 7}
    assert same(Alone.load_from_checkpoint(path), module)
    assert same(Quiet.load_from_checkpoint(path), module)


def test_nothing_is_saved_unless_a_class_saves(tmp_path: Path) -> None:
    class Mute(mixins.EarlyStoppingMixin, Quiet):
        pass

    path = saved(Mute(hidden=4, early_stopping=7), tmp_path)
    assert not {KEY, OWN} & held(path).keys()
    assert same(Mute.load_from_checkpoint(path, hidden=4), Quiet(hidden=4))
    assert same(Quiet.load_from_checkpoint(path, hidden=4), Quiet(hidden=4))


@pytest.mark.skipif(
    not hasattr(LightningModule, "remove_ignored_hparams"),
    reason="this Lightning keeps what a base has saved, though a subclass ignores it",
)
def test_ignored_arguments_stay_out(tmp_path: Path) -> None:
    class Ignoring(Bare):
        def __init__(self, width: int, **others: Any) -> None:
            super().__init__(**others)
            self.save_hyperparameters(ignore=["early_stopping", "width", "weights"])

    path = saved(Ignoring(2, early_stopping=7, weights=object()), tmp_path)
    assert not {"early_stopping", "width", "weights"} & {*held(path)[OWN], *held(path)[KEY]}
    loaded = Ignoring.load_from_checkpoint(path, width=3)
    assert loaded.early_stopping is not None
    assert loaded.early_stopping.patience == 10


def test_checkpoints_with_all_arguments_in_one_place_still_load(tmp_path: Path) -> None:
    path = saved(Bare(hidden=4, early_stopping=7, optimizer="sgd"), tmp_path)
    checkpoint = held(path)
    checkpoint[KEY] = {**checkpoint[KEY], **checkpoint.pop(OWN)}
    torch.save(checkpoint, path)
    loaded = Bare.load_from_checkpoint(path, weights_only=True)
    assert same(loaded, Bare(hidden=4))
    assert loaded.hparams.items() >= {"early_stopping": 7, "optimizer": "sgd"}.items()
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)  # can't be mapped
    assert same(Bare.load_from_checkpoint(path), Bare(hidden=4))


def test_objects_are_given_again(tmp_path: Path) -> None:
    objects = {"gradient_clipping": GradientClipping(0.5), "early_stopping": EarlyStopping("loss")}
    path = saved(Derived(width=2, **objects), tmp_path)
    assert not objects.keys() & {*held(path)[OWN], *held(path)[KEY]}
    assert same(Derived.load_from_checkpoint(path, **objects), Bare(hidden=4))
    message = r"leaves out early_stopping of Derived, .*load_from_checkpoint\(path, early_stopping="
    with pytest.warns(UserWarning, match=message):
        loaded = Derived.load_from_checkpoint(path, gradient_clipping=None, weights_only=True)
    assert loaded.early_stopping is not None
    assert loaded.early_stopping.patience == 10
    with pytest.warns(UserWarning, match="leaves out gradient_clipping and early_stopping of D"):
        Derived.load_from_checkpoint(path, hparams_file=None)


def test_a_changed_hyperparameter_is_that_of_both(tmp_path: Path) -> None:
    module = Rate(lr=0.25)
    module.hparams["lr"] = 0.75
    path = saved(module, tmp_path)
    assert Rate.load_from_checkpoint(path).hparams["lr"] == 0.75
    assert Task.load_from_checkpoint(path).hparams["lr"] == 0.75


def test_a_file_of_hyperparameters(tmp_path: Path) -> None:
    module = Derived(width=2, early_stopping=7)
    path = saved(module, tmp_path)
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams(module.hparams_initial)
    logger.save()
    (file,) = tmp_path.rglob("hparams.yaml")
    assert yaml.safe_load(file.read_text()).items() >= {"width": 2, "early_stopping": 7}.items()
    loaded = Derived.load_from_checkpoint(path, hparams_file=file)
    assert (loaded.hparams["width"], loaded.early_stopping.patience) == (2, 7)  # type: ignore[union-attr]
    file.write_text("width: 3\n")
    with pytest.raises(RuntimeError, match="size mismatch"):
        Derived.load_from_checkpoint(path, hparams_file=file)


def test_the_whole_of_the_hyperparameters_as_one_argument(tmp_path: Path) -> None:
    class One(mixins.EarlyStoppingMixin, LightningModule):
        def __init__(self, config: Any, **practices: Any) -> None:
            super().__init__(**practices)
            self.save_hyperparameters(config)
            self.net = nn.Linear(config["hidden"], 1)

    path = saved(One({"hidden": 4, "monitor": "mine"}, early_stopping=7), tmp_path)
    assert held(path)[KEY] == {"hidden": 4, "monitor": "mine"}
    assert One.load_from_checkpoint(path).hparams == {"hidden": 4, "monitor": "mine"}
    assert Namespace(**One.load_from_checkpoint(path).hparams).hidden == 4


def test_threads_load_checkpoints_of_both_kinds(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    paths = saved(Bare(hidden=4, early_stopping=7), tmp_path), saved(Task(4), tmp_path / "plain")
    found: dict[Path, set[int]] = {path: set() for path in paths}

    def load(path: Path) -> None:
        for _ in range(5):
            loaded = Bare.load_from_checkpoint(path)
            assert loaded.early_stopping is not None
            found[path].add(loaded.early_stopping.patience)

    threads = [threading.Thread(target=load, args=(path,)) for path in paths * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [{7}, {10}]


def test_weights_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Bare(hidden=4), tmp_path)
    load, mapped = torch.load, []

    def noting(*args: Any, **options: Any) -> Any:
        mapped.append(options.get("mmap", False))
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", noting)
    Bare.load_from_checkpoint(path)
    assert mapped == [True, False]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Lightning's use of jsonargparse
@pytest.mark.parametrize("is_subclass", [False, True])
def test_the_command_line(is_subclass: bool, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.argv", ["net.py"])
    own = {"hidden": 4, "early_stopping": 7}
    name = f"{__name__}.Bare"
    config = {"class_path": name, "init_args": own} if is_subclass else own
    cli = LightningCLI(
        Task if is_subclass else Bare, run=False, subclass_mode_model=is_subclass,
        save_config_callback=None, args={"model": config}, seed_everything_default=False,
        trainer_defaults={"accelerator": "cpu", "logger": False},
    )  # fmt: skip
    path = saved(cli.model, tmp_path)
    loaded = Bare.load_from_checkpoint(path)
    assert type(loaded) is Bare
    assert loaded.early_stopping is not None
    assert (loaded.early_stopping.patience, same(loaded, cli.model)) == (7, True)
    plain = Task.load_from_checkpoint(path)
    assert type(plain) is Task
    assert same(plain, cli.model)


# Arguments that a mixin and the class after it both take.


def test_a_name_of_both_is_of_the_next_class_in_its_hyperparameters(tmp_path: Path) -> None:
    module = Mine(hidden=4, learning_rate=0.25, early_stopping=7)
    assert (module.optimizer, module.hparams["optimizer"]) == ("adam", "adam")
    assert module.hparams["learning_rate"] == 0.25
    path = saved(module, tmp_path)
    assert held(path)[KEY] == {
        "hidden": 4, "sizes": [4], "learning_rate": 0.25, "optimizer": "adam"
    }  # fmt: skip
    assert same(Mine.load_from_checkpoint(path), module)
    assert Transformer.load_from_checkpoint(path).optimizer == "adam"


def test_a_name_of_both_is_loaded_by_the_next_class(tmp_path: Path) -> None:
    path = saved(Transformer(hidden=4, optimizer="ranger"), tmp_path)
    loaded = Mine.load_from_checkpoint(path, early_stopping=7)
    assert loaded.optimizer == loaded.hparams["optimizer"] == "ranger"
    assert Mine.load_from_checkpoint(saved(loaded, tmp_path)).optimizer == "ranger"
    loaded = Mine.load_from_checkpoint(path, optimizer=Optimizer("sgd", 0.5))
    assert (loaded.optimizer, loaded._optimizer.name) == ("ranger", "sgd")  # type: ignore[union-attr]


def test_a_value_that_may_be_for_both_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Mine got optimizer='sgd', but OptimizerMixin and F"):
        Mine(optimizer="sgd")
    for given in (None, Optimizer("sgd")):
        assert Mine(optimizer=given).optimizer == "adam"

    class Named(Mine):
        def __init__(self, optimizer: Any, lr: float = 0.5, **others: Any) -> None:
            super().__init__(optimizer=optimizer, learning_rate=lr, **others)

    made = Named(optimizer="sgd", lr=0.25)
    assert made._optimizer is not None
    assert (made._optimizer.name, made.optimizer) == ("sgd", "adam")
    assert made.hparams["learning_rate"] == 0.25
