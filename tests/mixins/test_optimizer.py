"""The optimizer by subclassing."""

import inspect
import typing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from lightning_practices.callbacks import GradientClipping, Penalty
from lightning_practices.mixins import LearningRateScheduleMixin, OptimizerMixin, PenaltyMixin
from lightning_practices.optim import Optimizer, parameter_groups
from lightning_practices.schedules import cosine_decay
from tests.callbacks.clipping import BATCHES, WIDTH, Noted, fit, trainer_of
from tests.callbacks.scripted import FILTERS, same, state_of

pytestmark = FILTERS

STEPS = 2 * BATCHES
NAMES = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw")


class Base(LightningModule):
    """A network without an optimizer."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net: Any = nn.Sequential(
            nn.Linear(WIDTH, width), nn.LayerNorm(width), nn.Tanh(), nn.Linear(width, 1)
        )

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = (self.net(batch) - 2 * batch.sum(1, keepdim=True)).square().mean()
        return loss


class Net(OptimizerMixin, Base):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()


class Written(Base):
    """The same as an author writes it."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    @override
    def configure_optimizers(self) -> Any:
        return self.make(self)


def optimizer_of(module: LightningModule) -> torch.optim.Optimizer:
    made = module.configure_optimizers()
    assert isinstance(made, torch.optim.Optimizer)
    return made


# What it makes.


def test_a_fit_as_it_is_written_by_hand() -> None:
    def make(module: Base) -> torch.optim.Optimizer:
        net = module.net
        weights = [net[0].weight, net[3].weight]
        others = [p for p in net.parameters() if all(p is not w for w in weights)]
        groups = [{"params": weights, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
        return AdamW(groups, lr=0.05, fused=True)

    module, expected = Net(optimizer=Optimizer(lr=0.05, weight_decay=0.2)), Written(make)
    fit(module)
    fit(expected)
    assert same(state_of(module), state_of(expected))


@pytest.mark.parametrize("name", NAMES)
def test_each_by_its_name_with_its_own_defaults(name: Any) -> None:
    made = optimizer_of(Net(optimizer=name))
    decays = {group["name"]: group["weight_decay"] for group in made.param_groups}
    assert decays == {"decay": 0.01 if name == "adamw" else 0, "no_decay": 0.0}
    rate = 1e-2 if name in ("adagrad", "rmsprop") else 1e-3
    assert {group["lr"] for group in made.param_groups} == {rate}
    module = Net(optimizer=Optimizer(name, lr=0.02))
    fit(module, max_epochs=1)
    assert not same(state_of(module), state_of(Net()))


def test_rates_by_layer_and_what_is_spared() -> None:
    made = optimizer_of(
        Net(
            optimizer=Optimizer(
                "sgd", lr=1.0, layer_decay=0.5, weight_decay=0.1, no_decay=("bias", "net.3.*")
            )
        )
    )
    rates = {g["name"]: (g["lr"], g["weight_decay"], len(g["params"])) for g in made.param_groups}
    assert rates == {
        "layer_0_decay": (0.5, 0.1, 2),  # the norm is of the layer before it
        "layer_0_no_decay": (0.5, 0.0, 2),
        "layer_1_no_decay": (1.0, 0.0, 2),
    }
    assert made.defaults["lr"] == 1.0  # of groups that are added


def test_your_own_makes_it() -> None:
    made = optimizer_of(Net(optimizer=Optimizer(partial(NAdam, lr=0.3, weight_decay=0.2))))
    assert type(made) is NAdam
    assert [(g["lr"], g["weight_decay"]) for g in made.param_groups] == [(0.3, 0.2), (0.3, 0.0)]
    given = Optimizer(lambda params: SGD(params, 0.3), lr=0.1, weight_decay=1)
    made = optimizer_of(Net(optimizer=given))
    assert [(g["lr"], g["weight_decay"]) for g in made.param_groups] == [(0.1, 1), (0.1, 0.0)]


# What else a module has.


def test_with_a_schedule() -> None:
    class Both(LearningRateScheduleMixin, OptimizerMixin, Base):
        pass

    def make(module: Base) -> Any:
        optimizer = Adam(parameter_groups(module, layer_decay=0.5, lr=0.1), fused=True)
        schedule = LambdaLR(optimizer, cosine_decay(STEPS))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    module = Both(optimizer=Optimizer("adam", lr=0.1, layer_decay=0.5))
    expected, logger = Written(make), Noted()
    fit(module, LearningRateMonitor(), logger=logger)
    fit(expected)
    assert same(state_of(module), state_of(expected))
    assert logger.of("lr-Adam/layer_0_decay")[0] == pytest.approx(0.05)
    assert logger.of("lr-Adam/layer_1_no_decay")[-1] == pytest.approx(0.0, abs=1e-9)


def test_a_message_says_whose_optimizer_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    class Both(OptimizerMixin, Written):
        pass

    with caplog.at_level("INFO"):
        assert type(fit(Both(SGD, optimizer="adam")).optimizers[0]) is Adam
    assert "optimizer='adam' replaces Written.configure_optimizers" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        made = fit(Both(partial(_sgd, lr=0.25), optimizer=None)).optimizers[0]
        fit(Net(optimizer="adam"))
    assert type(made) is SGD
    assert "replaces" not in caplog.text


def _sgd(module: nn.Module, lr: float) -> SGD:
    return SGD(module.parameters(), lr)


def test_a_configure_optimizers_of_the_class_stands() -> None:
    class Own(OptimizerMixin, Base):
        @override
        def configure_optimizers(self) -> Any:
            return SGD(self.parameters(), lr=0.1)

    class Extended(OptimizerMixin, Base):
        @override
        def configure_optimizers(self) -> Any:
            optimizer: Any = super().configure_optimizers()
            return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, lambda _: 1.0)}

    trainer = fit(module := Own(), max_epochs=1)
    assert type(trainer.optimizers[0]) is SGD
    plain = Written(lambda module: SGD(module.parameters(), lr=0.1))
    fit(plain, max_epochs=1)
    assert same(state_of(module), state_of(plain))
    trainer = fit(Extended(optimizer="adam"), max_epochs=1)
    assert type(trainer.optimizers[0]) is Adam
    assert len(trainer.lr_scheduler_configs) == 1


def test_it_replaces_that_of_a_base() -> None:
    class Over(OptimizerMixin, Written):
        pass

    made = optimizer_of(Over(lambda _: SGD([torch.zeros(1)]), optimizer="adam"))
    assert type(made) is Adam


def test_none_is_that_of_the_base() -> None:
    class Over(OptimizerMixin, Written):
        pass

    made = optimizer_of(Over(lambda module: SGD(module.parameters(), lr=0.7), optimizer=None))
    assert (type(made), made.defaults["lr"]) == (SGD, 0.7)
    message = r"Over was made with optimizer=None, which stands for Written.configure_optimizers"
    with pytest.raises(ValueError, match=message):
        Over(lambda _: None).make_optimizer()
    assert type(optimizer_of(Net(optimizer=None))) is AdamW  # no base class has one


def test_the_optimizer_of_the_base_is_the_default(caplog: pytest.LogCaptureFixture) -> None:
    class Over(OptimizerMixin, Written):
        pass

    module = Over(partial(_sgd, lr=0.25))
    plain = Written(partial(_sgd, lr=0.25))
    with caplog.at_level("INFO"):
        fit(module)
    fit(plain)
    assert same(state_of(module), state_of(plain))
    assert "replaces" not in caplog.text


def test_its_own_fused_stays() -> None:
    optimizer = Optimizer("adam", fused=True)
    trainer = fit(
        Net(optimizer=optimizer), max_epochs=1, precision="bf16-mixed", gradient_clip_val=None
    )
    assert trainer.optimizers[0].defaults["fused"] is True
    (callback,) = [GradientClipping(0.5)]
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))
    trainer = fit(Net(optimizer=optimizer), callback, max_epochs=1, plugins=[plugin])
    assert trainer.optimizers[0].defaults["fused"] is True
    trainer = fit(Net(optimizer="adam"), callback, max_epochs=1, plugins=[plugin])
    assert trainer.optimizers[0].defaults["fused"] is None


def test_weights_that_zero_3_has_partitioned() -> None:
    module = Net()
    for p in module.parameters():  # as DeepSpeed leaves them
        p.ds_id, p.ds_tensor, p.ds_shape = 0, p.detach().flatten(), p.shape  # type: ignore[attr-defined]
        p.data = torch.empty(0)
    with pytest.raises(
        ValueError, match=r"net\.0\.weight of Net is partitioned by DeepSpeed's ZeRO"
    ):
        trainer_of().fit(module, torch.zeros(2, 2, WIDTH))


def test_several_optimizers() -> None:
    class Two(OptimizerMixin, Base):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.automatic_optimization = False

        @override
        def configure_optimizers(self) -> Any:
            return [self.make_optimizer(self.net[0]), self.make_optimizer(self.net[3])]

        @override
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.step()
                optimizer.zero_grad()

    module = Two(optimizer=Optimizer("sgd", lr=0.1))
    trainer = fit(module, max_epochs=1)
    held = [[id(p) for g in o.param_groups for p in g["params"]] for o in trainer.optimizers]
    assert held == [[id(p) for p in module.net[i].parameters()] for i in (0, 3)]
    before = state_of(Base())
    changed = {name for name, value in state_of(module).items() if not value.equal(before[name])}
    assert changed == {"net.0.weight", "net.0.bias", "net.3.weight", "net.3.bias"}


def test_with_a_penalty() -> None:
    class Both(OptimizerMixin, PenaltyMixin, Base):
        pass

    with pytest.warns(
        UserWarning, match=r"AdamW decays 2 of the parameters .*, so both shrink them"
    ):
        fit(Both(penalty=Penalty(l2=0.1)), max_epochs=1)
    fit(Both(penalty=Penalty(l2=0.1), optimizer="adam"), max_epochs=1)


# Which form.


def test_clipping_under_mixed_precision() -> None:
    def plugin() -> MixedPrecision:
        return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))

    module, other = (Net(optimizer=Optimizer(lr=0.05)) for _ in range(2))
    trainer = fit(module, plugins=[plugin()], gradient_clip_val=0.5)
    assert trainer.optimizers[0].defaults["fused"] is None
    fit(other, GradientClipping(0.5), plugins=[plugin()])
    for name, value in state_of(other).items():
        torch.testing.assert_close(state_of(module)[name], value)
    # Lightning's check is whether it is fused, and not whether a loss is scaled.
    fused = [
        fit(Net(), max_epochs=1, **options).optimizers[0].defaults["fused"]
        for options in (
            {"precision": "bf16-mixed", "gradient_clip_val": 0.5},
            {"precision": "bf16-mixed"},
            {"gradient_clip_val": 0.5},
            {"precision": "bf16-true", "gradient_clip_val": 0.5},
        )
    ]
    assert fused == [None, True, True, True]


def test_sparse_gradients() -> None:
    class Words(OptimizerMixin, LightningModule):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.words = nn.Embedding(5, 1, sparse=True)

        @override
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss: Tensor = self.words(batch.argmax(1)).sum()
            return loss

    module = Words(optimizer=Optimizer("sgd", lr=1.0))
    before = state_of(module)["words.weight"]
    fit(module, max_epochs=1)
    assert not torch.equal(state_of(module)["words.weight"], before)


# As a part of the module.


@pytest.mark.parametrize("name", ["momentum", "rmsprop", "adamw"])
def test_a_resumed_fit_goes_on_exactly(name: Any, tmp_path: Path) -> None:
    optimizer = Optimizer(name, lr=0.02, layer_decay=0.5)
    whole = Net(optimizer=optimizer)
    fit(whole, ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1), max_epochs=3)
    resumed = Net(optimizer=optimizer)
    trainer = fit(resumed, max_epochs=3, resume=tmp_path / "epoch=0.ckpt")
    assert same(state_of(whole), state_of(resumed))
    names = [group["name"] for group in trainer.optimizers[0].param_groups]
    assert names[0] == "layer_0_decay"


def test_hyperparameters_and_load_from_checkpoint(tmp_path: Path) -> None:
    fit(Net(optimizer="nesterov", width=6), ModelCheckpoint(tmp_path, "net"), max_epochs=1)
    loaded = Net.load_from_checkpoint(tmp_path / "net.ckpt")
    assert dict(loaded.hparams).items() >= {"optimizer": "nesterov", "width": 6}.items()
    assert optimizer_of(loaded).defaults["nesterov"]


def test_typed_for_the_command_line() -> None:
    hints = typing.get_type_hints(OptimizerMixin.__init__)
    names, *others = typing.get_args(hints["optimizer"])
    assert typing.get_args(names) == NAMES
    assert others == [Optimizer, type(None)]
    given = inspect.signature(OptimizerMixin.__init__).parameters
    assert all(name in hints for name in given if name != "self")


def test_what_is_refused() -> None:
    for settings, message in (
        ({"name": "Adam"}, "name has to be 'sgd', .* but got 'Adam': did you mean 'adam'"),
        ({"lr": -1.0}, "lr has to be a finite number, at least 0, but got -1"),
        ({"weight_decay": -1.0}, "weight_decay has to be a finite number"),
        ({"layer_decay": 0.5}, "layer_decay multiplies the rate"),
        ({"layer_decay": 2.0, "lr": 0.1}, "layer_decay has to be a finite number, above 0 and"),
    ):
        with pytest.raises(ValueError, match=message):
            Optimizer(**settings)
    with pytest.raises(ValueError, match="but got 'Adam'"):
        Net(optimizer="Adam")
    with pytest.raises(TypeError, match=r"optimizer has to be .*optim\.Optimizer, None, but got"):
        Net(optimizer=torch.optim.AdamW)
    with pytest.raises(ValueError, match=r"'head.\*' is none of"):
        trainer_of().fit(Net(optimizer=Optimizer(no_decay=("head.*",))), torch.zeros(2, 2, WIDTH))
