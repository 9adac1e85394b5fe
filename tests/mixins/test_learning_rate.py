"""Learning-rate schedules by subclassing: real fits, each step notes the rates it was made with."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.tuner.tuning import Tuner
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, IterableDataset
from typing_extensions import override

from lightning_practices.callbacks import LearningRateScheduler
from lightning_practices.mixins import EarlyStoppingMixin, LearningRateScheduleMixin
from lightning_practices.schedules import LearningRateSchedule, learning_rate_factor
from tests import processes

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Please add the following callbacks.*ModelCheckpoint"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable"),
]

BATCHES = 24  # micro-batches of an epoch
RATES = (0.02, 0.0005)


class Base(LightningModule):
    """Two groups; the metric is a script's, one value for each validation after the first, sane."""

    def __init__(self, values: Any = ()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 1)
        self.values: list[float | None] = list(values)
        self.seen: dict[int, list[float]] = {}  # by step
        self.loaded = 0

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = (self.second(self.first(batch)) - 1).square().mean()
        return loss

    @override
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        step = self.trainer.global_step
        assert step not in self.seen
        self.seen[step] = [group["lr"] for group in optimizer.param_groups]

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        if self.trainer.sanity_checking:
            self.log("val_loss", -1e9)  # would be the best of all

    @override
    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            value = self.values.pop(0)
            if value is not None:
                self.log("val_loss", value)

    @override
    def train_dataloader(self) -> Any:
        self.loaded += 1
        return rows(BATCHES)

    @override
    def configure_optimizers(self) -> Any:
        groups = [
            {"params": part.parameters(), "lr": rate}
            for part, rate in zip((self.first, self.second), RATES, strict=True)
        ]
        return SGD(groups, lr=1.0, momentum=0.9)

    @property
    def factors(self) -> list[float]:
        """Return the factor of each step, which is that of all groups."""
        for rates in self.seen.values():
            assert rates == near([rates[0] / RATES[0] * rate for rate in RATES])
        return [rates[0] / RATES[0] for rates in self.seen.values()]


class Net(LearningRateScheduleMixin, Base):
    pass


def net(name: Any = "cosine", **arguments: Any) -> Net:
    return Net(schedule=LearningRateSchedule(name, **arguments))


def rows(count: int) -> DataLoader[Tensor]:
    data: Any = list(torch.randn(count, 2, generator=torch.Generator().manual_seed(1)))
    return DataLoader(data)


def near(rates: Any) -> Any:
    return pytest.approx(rates, rel=1e-12, abs=1e-17)


def trainer_of(*callbacks: Callback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": 3}
    return Trainer(
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **defaults | options,
    )


def fit(
    module: LightningModule, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> Trainer:
    validates = hasattr(module, "values") and bool(module.values)
    trainer = trainer_of(*callbacks, **options)
    trainer.fit(module, val_dataloaders=rows(1) if validates else None, ckpt_path=resume)
    return trainer


@pytest.fixture(autouse=True)
def _no_validation() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*have no `val_dataloader`")
        yield


# Steps.


@pytest.mark.parametrize(
    ("options", "callbacks", "steps"),
    [
        pytest.param({"accumulate_grad_batches": 4}, [], 18, id="accumulation"),
        pytest.param({}, [GradientAccumulationScheduler({0: 4})], 18, id="by its callback"),
        pytest.param({}, [GradientAccumulationScheduler({0: 4, 1: 2, 2: 1})], 42, id="changing"),
        pytest.param({"accumulate_grad_batches": 7}, [], 12, id="a remainder"),
        pytest.param({"accumulate_grad_batches": 4, "max_steps": 11}, [], 11, id="max_steps"),
        pytest.param({"max_epochs": 1}, [], 24, id="none"),
        pytest.param({"max_epochs": -1, "max_steps": 30}, [], 30, id="no max_epochs"),
        pytest.param({"limit_train_batches": 0.5}, [], 36, id="limit_train_batches"),
    ],
)
def test_it_peaks_after_the_warmup_and_ends_at_the_floor(
    options: dict[str, Any], callbacks: list[Callback], steps: int
) -> None:
    module = net(warmup_steps=6, floor=0.01)
    trainer = fit(module, *callbacks, **options)
    assert trainer.global_step == steps
    assert list(module.seen) == list(range(steps))
    factors = module.factors
    assert factors[:7] == near([(t + 1) / 7 for t in range(7)])
    assert module.seen[6] == list(RATES)  # exactly
    assert max(factors[7:]) < 1
    assert factors[6:] == sorted(factors[6:], reverse=True)
    assert factors[-1] == near(0.01)
    assert factors[-2] > 0.0101
    factor = learning_rate_factor("cosine", steps, warmup_steps=6, floor=0.01)
    assert factors == near([factor(t) for t in range(steps)])
    assert module.loaded == 1


@pytest.mark.parametrize("schedule", ["power", "exponential", "step", "cosine", "one_cycle"])
@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.filterwarnings("ignore:.*the step schedule divides the rate after 13")
def test_each_schedule_by_its_arguments(schedule: Any, warmup: int) -> None:
    module = net(schedule, steps=10, warmup_steps=warmup, floor=0.125, exponent=2.0, divisor=3.0)
    fit(module, max_epochs=1, accumulate_grad_batches=2)
    factor = learning_rate_factor(
        schedule, 10, warmup_steps=warmup, floor=0.125, exponent=2.0, divisor=3.0
    )
    assert module.factors == near([factor(t) for t in range(12)])


def test_by_default_a_cosine_of_the_whole_fit() -> None:
    module = Net()
    fit(module, max_epochs=1)
    factor = learning_rate_factor("cosine", 24)
    assert module.factors == near([factor(t) for t in range(24)])


def test_lightnings_own_estimate_is_another() -> None:
    """Why the mixin counts itself."""
    estimates = []

    class Asking(Base):
        @override
        def on_train_start(self) -> None:
            estimates.append(self.trainer.estimated_stepping_batches)

    scheduler = GradientAccumulationScheduler({0: 4, 1: 2, 2: 1})
    assert fit(Asking(), scheduler).global_step == 42
    assert estimates == [72]


def test_lightning_counts_micro_batches_for_other_frequencies() -> None:
    """Why the mixin's frequency is 1."""

    class Other(Base):
        @override
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            scheduler = LambdaLR(optimizer, lambda t: 1 / (t + 1))
            config = {"scheduler": scheduler, "interval": "step", "frequency": 2}
            return [optimizer], [config]

    module = Other()
    fit(module, max_epochs=1, accumulate_grad_batches=4)
    assert module.factors == near([1 / (t + 1) for t in range(6)])  # and not 1, 1, 1/2, ...


# Resuming.


class Save(Callback):
    """Save a checkpoint after a given micro-batch, counted over epochs."""

    def __init__(self, batch: int, path: Path) -> None:
        self.batch = batch
        self.path = path

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
@pytest.mark.parametrize("batch", [8, 24, 32, 38, 48])
def test_resuming_is_as_if_never_stopped(tmp_path: Path, schedule: Any, batch: int) -> None:
    given = LearningRateSchedule(schedule, warmup_steps=4, steps=5 if schedule == "step" else None)
    whole, path = Net(schedule=given), tmp_path / "middle.ckpt"
    fit(whole, Save(batch, path), accumulate_grad_batches=4)
    torch.load(path, weights_only=True)
    resumed = Net(schedule=given)
    fit(resumed, resume=path, accumulate_grad_batches=4)
    assert list(resumed.seen) == list(range(batch // 4, 18))
    assert resumed.seen == {step: whole.seen[step] for step in resumed.seen}  # bitwise
    if batch % BATCHES == 0:  # the loader can't resume within an epoch
        for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("batch", [32, 72])
def test_resuming_with_more_epochs_goes_on_along_the_new_curve(tmp_path: Path, batch: int) -> None:
    path = tmp_path / "middle.ckpt"
    fit(Net(), Save(batch, path), accumulate_grad_batches=4)
    resumed = Net()
    fit(resumed, resume=path, accumulate_grad_batches=4, max_epochs=5)
    factor = learning_rate_factor("cosine", 30)
    assert list(resumed.seen) == list(range(batch // 4, 30))
    assert resumed.factors == near([factor(step) for step in resumed.seen])


def test_a_second_fit_of_the_same_trainer_goes_on() -> None:
    module = net(warmup_steps=6, steps=48)
    trainer = fit(module, max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module)
    factor = learning_rate_factor("cosine", 48, warmup_steps=6)
    assert module.factors == near([factor(t) for t in range(48)])


def test_a_tensor_as_the_rate(tmp_path: Path) -> None:
    class Tensors(Base):
        @override
        def configure_optimizers(self) -> Any:
            return Adam(self.parameters(), lr=torch.tensor(0.5, dtype=torch.float64))

        @override
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.seen[self.trainer.global_step] = [float(optimizer.param_groups[0]["lr"])]

    class TensorNet(LearningRateScheduleMixin, Tensors):
        pass

    path = tmp_path / "middle.ckpt"
    fit(TensorNet(), Save(10, path), max_epochs=1)
    resumed = TensorNet()
    fit(resumed, resume=path, max_epochs=2)
    factor = learning_rate_factor("cosine", 48)
    assert resumed.seen == {t: near([0.5 * factor(t)]) for t in range(10, 48)}


# The plateau.

WORSE = [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]


def performing(values: Any = WORSE, **arguments: Any) -> Net:
    own = {name: arguments.pop(name) for name in ("monitor", "mode") if name in arguments}
    schedule = LearningRateSchedule("plateau", **{"patience": 1, "divisor": 2.0, **arguments})
    return Net(values, schedule=schedule, **own)


@pytest.mark.parametrize(
    ("options", "checks"),
    [
        pytest.param({}, [24, 48, 72, 96, 120, 144], id="each epoch"),
        # PL#5943: Lightning looks at the last one of an epoch alone.
        pytest.param({"val_check_interval": 0.5}, range(12, 145, 12), id="within epochs"),
        # PL#10496: Lightning raises after the first epoch, then looks at old values.
        pytest.param({"check_val_every_n_epoch": 2}, [48, 96, 144], id="every other epoch"),
        pytest.param(
            {"val_check_interval": 30, "check_val_every_n_epoch": None},
            [30, 60, 90, 120],
            id="across epochs",
        ),
        # Between two steps of the optimizer.
        pytest.param(
            {"val_check_interval": 0.25, "accumulate_grad_batches": 4, "max_epochs": 3},
            range(6, 73, 6),
            id="within accumulation",
        ),
    ],
)
def test_it_looks_at_each_value_once(options: dict[str, Any], checks: Any) -> None:
    """PL#1156: not at each step, at a value of long ago or at none."""
    module = performing()
    trainer = fit(module, **{"max_epochs": 6, **options})
    accumulated = trainer.accumulate_grad_batches
    # The first is the best; then every second one divides.
    divides = [check for i, check in enumerate(checks) if i and i % 2 == 0]
    batches = [t * accumulated + accumulated for t in module.seen]  # seen when a step is made
    expected = [0.5 ** sum(check < batch for check in divides) for batch in batches]
    assert module.factors == near(expected)


def test_a_validation_without_the_metric_does_not_count() -> None:
    module = performing([1.0, None, 2.0, None, None, 2.0, 2.0, 2.0])
    fit(module, max_epochs=2, val_check_interval=0.25)
    assert module.factors == near([1.0] * 36 + [0.5] * 12)


def test_the_warmup_comes_first() -> None:
    """PL#10759: torch's SequentialLR can't; here values within the warmup don't count."""
    values = [0.0, 2.0, 2.0, 2.0, 1.0, 2.0, 2.0, 2.0]
    module = performing(values, warmup_steps=13)
    fit(module, max_epochs=2, val_check_interval=0.25)
    warm = [(t + 1) / 14 for t in range(13)]
    # After step 18 a first value, 2; then 2, 1, 2, 2: the second bad one in a row after step 42.
    assert module.factors == near(warm + [1.0] * (42 - 13) + [0.5] * 6)


def test_a_metric_of_training() -> None:
    class Training(Base):
        @override
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.log("train", float(self.trainer.current_epoch), on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    class TrainingNet(LearningRateScheduleMixin, Training):
        pass

    plateau = LearningRateSchedule("plateau", patience=0)
    module = TrainingNet(schedule=plateau, monitor="train")
    fit(module, max_epochs=3)
    assert module.factors == near([1.0] * 48 + [0.1] * 24)
    rising = TrainingNet(WORSE, schedule=plateau, monitor="train", mode="max")
    fit(rising, max_epochs=3)
    assert rising.factors == near([1.0] * 72)


@pytest.mark.filterwarnings("ignore:the plateau schedule watches")
@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        pytest.param({"values": WORSE, "monitor": "loss"}, {}, id="misspelt"),
        pytest.param({"values": [None] * 9}, {"val_check_interval": 0.5}, id="never logged"),
        pytest.param({"values": ()}, {}, id="no validation"),
        pytest.param(
            {"values": WORSE}, {"check_val_every_n_epoch": 1, "limit_val_batches": 0}, id="none run"
        ),
    ],
)
def test_a_metric_that_never_comes(arguments: Any, options: Any) -> None:
    module = performing(**arguments)
    with pytest.raises(MisconfigurationException, match=r"watches '(val_)?loss', but neither"):
        fit(module, **options)
    assert len(module.seen) == 24


@pytest.mark.filterwarnings("ignore:.*the plateau schedule divides the rate after")
@pytest.mark.parametrize(
    ("interval", "step"), [(0.25, 6), (0.25, 12), (0.25, 24), (0.25, 30), (1.0, 24)]
)
def test_resuming_from_a_validation(tmp_path: Path, step: int, interval: float) -> None:
    """What ModelCheckpoint saves holds the check of the validation that it saves after."""
    values = {t: (1.0 if t == 6 else 2.0) for t in range(6, 49, 6)}

    class ByStep(Net):
        @override
        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                self.log("val_loss", values[self.trainer.global_step])

    def make(patience: int) -> Any:
        schedule = LearningRateSchedule("plateau", warmup_steps=3, divisor=2.0, patience=patience)
        return ByStep(WORSE, schedule=schedule)

    save = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, monitor="val_loss")
    whole, resumed = make(1), make(1)
    options: dict[str, Any] = {"max_epochs": 2, "val_check_interval": interval}
    fit(whole, save, **options)
    path = tmp_path / f"step={step}.ckpt"
    torch.load(path, weights_only=True)
    fit(resumed, resume=path, num_sanity_val_steps=0, **options)
    assert list(resumed.seen) == list(range(step, 48))
    assert resumed.seen == {t: whole.seen[t] for t in resumed.seen}
    patient = make(99)  # the old patience is not restored
    fit(patient, resume=path, num_sanity_val_steps=0, **options)
    assert set(map(tuple, patient.seen.values())) == {tuple(whole.seen[step])}


@pytest.mark.filterwarnings("ignore:.*the plateau schedule divides the rate after")
def test_resuming_where_no_batch_of_the_epoch_is_left(tmp_path: Path) -> None:
    class Training(Base):
        @override
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.log("train_loss", 1.0, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    class TrainingNet(LearningRateScheduleMixin, Training):
        pass

    path = tmp_path / "end.ckpt"
    fit(TrainingNet(schedule="plateau", monitor="train_loss"), Save(24, path), max_epochs=1)
    module = TrainingNet(schedule="plateau", monitor="train_loss")
    fit(module, resume=path, max_epochs=2)
    assert list(module.seen) == list(range(24, 48))


# What is refused.


class Own(LearningRateScheduleMixin, Base):
    @override
    def configure_optimizers(self) -> Any:
        return Base.configure_optimizers(self)


def test_a_configure_optimizers_of_the_class_itself() -> None:
    own = Own()
    fit(own, max_epochs=1)
    factor = learning_rate_factor("cosine", 24)
    assert own.factors == near([factor(t) for t in range(24)])


def with_result(make: Any) -> Net:
    """Return a module whose base returns ``make(optimizer)``."""

    class Returning(Base):
        @override
        def configure_optimizers(self) -> Any:
            return make(SGD(self.parameters(), lr=RATES[0]))

    class ReturningNet(LearningRateScheduleMixin, Returning):
        pass

    return ReturningNet()  # type: ignore[return-value]


@pytest.mark.parametrize(
    "make",
    [
        lambda o: [o],
        lambda o: (o,),
        lambda o: {"optimizer": o},
        lambda o: [{"optimizer": o}],
        lambda o: ([o], []),
    ],
)
def test_all_forms_of_one_optimizer(make: Any) -> None:
    module = with_result(make)
    fit(module, max_epochs=1)
    factor = learning_rate_factor("cosine", 24)
    assert [rates[0] for rates in module.seen.values()] == near(
        [RATES[0] * factor(t) for t in range(24)]
    )


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda o: ([o], [LambdaLR(o, float)]), "SGD, LambdaLR"),
        (
            lambda o: {
                "optimizer": o,
                "lr_scheduler": {"scheduler": ReduceLROnPlateau(o), "monitor": "val_loss"},
            },
            "SGD, ReduceLROn",
        ),
    ],
)
def test_other_results_are_refused(make: Any, got: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"one optimizer.* but got {got}"):
        fit(with_result(make))


@pytest.mark.filterwarnings("ignore:.*configure_optimizers` returned `None`")
def test_no_optimizer_at_all() -> None:
    module = with_result(lambda o: None)
    assert fit(module, max_epochs=1).global_step == 24


def test_manual_optimization() -> None:
    module = Net()
    module.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match=r"step it after each step of the optimiz"):
        fit(module)


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield torch.ones(2)


class Streaming(Net):
    @override
    def train_dataloader(self) -> Any:
        return DataLoader(Endless())


def test_a_fit_of_unknown_length() -> None:
    for module, epochs in ((Net(), -1), (Streaming(), 2)):
        with pytest.raises(
            MisconfigurationException,
            match=r"isn't known .* LearningRateSchedule\('cosine', steps=.*schedule=None",
        ):
            fit(module, max_epochs=epochs)
    module = Streaming()
    fit(module, max_steps=7)
    factor = learning_rate_factor("cosine", 7)
    assert module.factors == near([factor(t) for t in range(7)])
    module = Streaming(schedule=LearningRateSchedule(steps=20))
    fit(module, max_epochs=1, limit_train_batches=5)
    factor = learning_rate_factor("cosine", 20)
    assert module.factors == near([factor(t) for t in range(5)])


def test_a_warmup_longer_than_the_fit() -> None:
    with pytest.warns(UserWarning, match="has 24 optimizer steps, and the warmup .* 24: the full"):
        fit(net(warmup_steps=24), max_epochs=1)
    fit(net(warmup_steps=24), fast_dev_run=2)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"schedule": "cos"}, "has to be 'power', .* but got 'cos'"),
        ({"schedule": "power"}, "'power' needs steps"),
        ({"schedule": "plateau", "mode": "low"}, "got 'low'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Net(**arguments)


def test_none_leaves_the_rates_alone() -> None:
    module = Net(schedule=None)
    trainer = fit(module, max_epochs=1)
    assert module.factors == [1.0] * 24
    assert module.learning_rate_scheduler is None
    assert not any(isinstance(c, LearningRateScheduler) for c in trainer.callbacks)  # type: ignore[attr-defined]


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "plateau"])
def test_the_callback_in_any_trainer(schedule: Any) -> None:
    module, plain = Net(WORSE, schedule=schedule), Base(WORSE)
    fit(module, max_epochs=6)
    fit(plain, LearningRateScheduler(schedule), max_epochs=6)
    assert plain.seen == module.seen
    assert min(plain.factors) < 0.2


def test_deepspeeds_wrapper_of_an_optimizer() -> None:
    """It isn't torch's Optimizer, and has the same groups."""

    class Wrapper:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer, self.param_groups = optimizer, optimizer.param_groups

    module, scheduler = Base(), LearningRateScheduler()
    trainer = trainer_of(scheduler, max_epochs=1)
    module.trainer = trainer
    trainer.strategy.connect(module)
    trainer.fit_loop.max_epochs = 1
    optimizer = module.configure_optimizers()
    trainer.strategy._optimizers = [Wrapper(optimizer)]  # type: ignore[list-item]
    scheduler.schedule = LearningRateSchedule(steps=3)
    scheduler.on_fit_start(trainer, module)
    (config,) = trainer.lr_scheduler_configs
    for factor in (1.0, 0.5, 0.0):
        assert [group["lr"] for group in optimizer.param_groups] == near(
            [factor * r for r in RATES]
        )
        optimizer.step()
        config.scheduler.step()  # type: ignore[call-arg]


# With others.


def test_with_early_stopping() -> None:
    class Both(EarlyStoppingMixin, LearningRateScheduleMixin, Base):
        pass

    module = Both(
        [3.0, 1.0, 2.0, 2.0, 2.0, 2.0],
        early_stopping=3,
        schedule=LearningRateSchedule("plateau", patience=1),
    )
    trainer = fit(module, max_epochs=6)
    assert trainer.current_epoch == 5
    assert module.factors == near([1.0] * 96 + [0.1] * 24)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_lightnings_search_of_a_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    module = Net(schedule=schedule)
    trainer = trainer_of(default_root_dir=tmp_path)
    finder = Tuner(trainer).lr_find(
        module, num_training=10, update_attr=False,
        early_stop_threshold=None,
    )  # fmt: skip
    assert finder is not None
    assert finder.results["lr"] == sorted(finder.results["lr"])
    assert len(set(finder.results["lr"])) >= 9


class Ranks(LearningRateScheduleMixin, Base):
    @override
    def train_dataloader(self) -> Any:
        return rows(16)

    @override
    def on_validation_epoch_end(self) -> None:
        # Improves on rank 0, worsens on rank 1, and gets worse on average.
        epoch = self.trainer.current_epoch
        self.log("val_loss", float(epoch * (-1 if self.global_rank == 0 else 3)))

    @override
    def on_train_end(self) -> None:
        rates: Any = self.all_gather(torch.tensor(self.factors))
        assert torch.equal(rates[0], rates[1])
        Path(self.trainer.default_root_dir, f"rank {self.global_rank}").touch()


def two_processes(root: Path) -> None:
    options: dict[str, Any] = {"strategy": "ddp", "devices": 2, "max_epochs": 4}
    options["default_root_dir"] = root
    performing = Ranks(WORSE, schedule=LearningRateSchedule("plateau", patience=1, divisor=2.0))
    fit(performing, **options)
    assert performing.factors == near([1.0] * 24 + [0.5] * 8)  # the third value is the second bad
    cosine = Ranks()
    trainer = fit(cosine, **options, accumulate_grad_batches=3)
    assert trainer.global_step == 4 * 3
    factor = learning_rate_factor("cosine", 12)
    assert cosine.factors == near([factor(t) for t in range(12)])


def test_all_processes_have_the_same_rates(tmp_path: Path) -> None:
    processes.run(two_processes, [(tmp_path,)] * 2)
    assert {path.name for path in tmp_path.glob("rank*")} == {"rank 0", "rank 1"}
