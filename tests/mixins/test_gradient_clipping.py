"""Gradient clipping by subclassing."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy
from typing_extensions import override

from lightning_practices.callbacks import GradientClipping, SkipNonFinite
from lightning_practices.mixins import EarlyStoppingMixin, GradientClippingMixin
from tests.callbacks.clipping import (
    BATCHES,
    THRESHOLDS,
    Manual,
    Net,
    Noted,
    Raw,
    assert_same,
    by_hand,
    fit,
    loader,
    trainer_of,
)
from tests.callbacks.scripted import FILTERS, same, state_of

pytestmark = FILTERS


class Clipped(GradientClippingMixin, Net):
    """Fails if Lightning, and so torch, clips."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()

    @override
    def clip_gradients(self, *_: Any, **__: Any) -> None:
        raise AssertionError


def clipped(**settings: Any) -> Clipped:
    return Clipped(gradient_clipping=GradientClipping(**settings))


class ByHand(GradientClippingMixin, Manual):
    @override
    def before_step(self, optimizer: Any) -> None:
        self.clip_gradients_of(optimizer)


SETTINGS: list[dict[str, Any]] = [
    {"value": 5.0, "groups": {"net.2.*": 2.0}, "warmup_steps": 4, "log_layers": "top1"},
    {"value": 2.5, "algorithm": "value"},
    {"value": 4.0, "algorithm": "adaptive"},
    {"percentile": 30},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 4}, {"precision": "bf16-mixed"}],
    ids=str,
)
def test_it_does_what_the_callback_does(settings: Any, options: dict[str, Any]) -> None:
    module, logger = Clipped(gradient_clipping=GradientClipping(**settings)), Noted()
    fit(module, logger=logger, **options)
    plain, other = Net(), Noted()
    fit(plain, GradientClipping(**settings), logger=other, **options)
    assert_same(module.seen, plain.seen, rtol=0, atol=0)
    assert logger.steps == other.steps


@pytest.mark.parametrize(("algorithm", "value"), THRESHOLDS[:2])
def test_the_trainers_value_without_one_of_its_own(algorithm: str, value: float) -> None:
    module, raw, logger = clipped(), Raw(), Noted()
    fit(module, raw, gradient_clip_val=value, gradient_clip_algorithm=algorithm, logger=logger)
    pairs = zip(raw.weights, raw.grads, strict=True)
    assert_same(module.seen, [by_hand(w, g, algorithm, value) for w, g in pairs])
    assert logger.of("grad_norm") == pytest.approx(raw.norms(), rel=1e-5)


def test_the_trainers_value_is_by_norm_unless_it_says_otherwise() -> None:
    module, raw = clipped(), Raw()
    fit(module, raw, gradient_clip_val=2)
    pairs = zip(raw.weights, raw.grads, strict=True)
    assert_same(module.seen, [by_hand(w, g, "norm", 2.0) for w, g in pairs])


def test_a_fit_under_another_trainer_has_that_ones_value() -> None:
    module = clipped()
    fit(module, gradient_clip_val=0.1, gradient_clip_algorithm="value")
    raw = Raw()
    module.seen.clear()
    fit(module, raw)
    assert_same(module.seen, raw.grads, rtol=0, atol=0)


def test_both_have_a_value() -> None:
    message = r"Trainer\(gradient_clip_val=0.5\) and GradientClipping would both clip"
    for settings in ({"value": 1.0}, {"percentile": 10}):
        with pytest.raises(MisconfigurationException, match=message):
            fit(clipped(**settings), gradient_clip_val=0.5)


# Manual optimization.


def test_a_method_to_call() -> None:
    module, logger = ByHand(gradient_clipping=2.0), Noted()
    fit(module, logger=logger)
    plain, other = Manual(), Noted()
    fit(plain, GradientClipping(2.0), logger=other)
    assert_same(module.seen, plain.seen, rtol=0, atol=0)
    assert_same(module.other, plain.other, rtol=0, atol=0)
    assert logger.steps == other.steps


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_method_under_16_mixed(settings: Any, fused: bool) -> None:
    weights, logs = [], []
    for kind in (ByHand, Manual):
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))
        own = kind is ByHand
        module = kind(
            fused=fused, **({"gradient_clipping": GradientClipping(**settings)} if own else {})
        )
        callbacks = [] if own else [GradientClipping(**settings)]
        fit(module, *callbacks, plugins=[plugin], logger=(logger := Noted()))
        weights.append([p.detach() for p in module.parameters()])
        logs.append([value for values in logger.steps.values() for value in values.values()])
    for mine, right in zip(*weights, strict=True):
        torch.testing.assert_close(mine, right)
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)


def test_the_method_under_automatic_optimization() -> None:
    module = Clipped(gradient_clipping=1.0)
    fit(module, max_epochs=1)
    with pytest.raises(MisconfigurationException, match="is for manual optimization: under auto"):
        module.clip_gradients_of(torch.optim.SGD(module.parameters()))


def test_an_optimizer_of_ones_own() -> None:
    class Own(ByHand):
        @override
        def before_step(self, optimizer: Any) -> None:
            self.clip_gradients_of(torch.optim.SGD(self.parameters()))

    with pytest.raises(ValueError, match="SGD isn't one of the optimizers that configure_optim"):
        fit(Own(gradient_clipping=1.0))


# As a part of the module.


def test_a_resumed_fit_goes_on_exactly(tmp_path: Path) -> None:
    whole = clipped(percentile=30)
    fit(whole, ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1), max_epochs=3)
    resumed = clipped(percentile=30)
    fit(resumed, max_epochs=3, resume=tmp_path / "epoch=0.ckpt")
    assert same(state_of(whole), state_of(resumed))


def test_it_replaces_the_trainers_callback() -> None:
    module = Clipped(gradient_clipping=5.0)
    trainer = fit(module, GradientClipping(0.01))
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    assert sum(isinstance(callback, GradientClipping) for callback in callbacks) == 1
    plain = Net()
    fit(plain, GradientClipping(5.0))
    assert same(state_of(module), state_of(plain))
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, loader())
    assert len(module.seen) == 3 * BATCHES


def test_with_skipped_steps() -> None:
    data = loader().dataset
    rows: Any = [data[i] * (math.nan if i == 2 else 1.0) for i in range(2 * BATCHES)]
    module, skip = clipped(percentile=50), SkipNonFinite()
    fit(module, skip, data=rows)
    expected = clipped(percentile=50)
    fit(expected, data=rows[:2] + rows[4:])
    assert skip.skipped == 2
    assert same(state_of(module), state_of(expected))


def test_configure_callbacks() -> None:
    class Base(Net):
        @override
        def configure_callbacks(self) -> Any:
            return Timer({"hours": 1})

    class Both(GradientClippingMixin, EarlyStoppingMixin, Base):
        pass

    assert len(Both(gradient_clipping=1.0).configure_callbacks()) == 3

    class Forgetful(GradientClippingMixin, Net):
        @override
        def configure_callbacks(self) -> list[Callback]:
            return []

    message = "Forgetful.configure_callbacks doesn't return .* so GradientClipping would not run"
    with pytest.raises(MisconfigurationException, match=message):
        fit(Forgetful(gradient_clipping=1.0))

    class Silent(Forgetful):
        @override
        def on_fit_start(self) -> None:
            pass

    message = r"without a fit that has this callback.*Silent.configure_callbacks has to return it"
    with pytest.raises(RuntimeError, match=message):
        fit(Silent(gradient_clipping=1.0))


def test_hyperparameters_and_load_from_checkpoint(tmp_path: Path) -> None:
    fit(module := Clipped(gradient_clipping=5.0), ModelCheckpoint(tmp_path, "net"))
    loaded = Clipped.load_from_checkpoint(tmp_path / "net.ckpt")
    assert loaded.hparams["gradient_clipping"] == 5.0
    fit(loaded, resume=None)
    fit(module)
    assert same(state_of(loaded), state_of(module))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="value has to be a number, above 0"):
        Clipped(gradient_clipping=-1.0)
    with pytest.raises(ValueError, match="no parameter's name matches 'head'"):
        fit(clipped(groups={"head": 1.0}))


def test_none_leaves_it_to_lightning() -> None:
    class Off(GradientClippingMixin, Net):
        pass

    module, plain = Off(gradient_clipping=None), Net()
    trainer = fit(module, gradient_clip_val=0.5)
    fit(plain, gradient_clip_val=0.5)
    assert same(state_of(module), state_of(plain))
    assert not any(isinstance(c, GradientClipping) for c in trainer.callbacks)  # type: ignore[attr-defined]
    by_hand = ByHand(gradient_clipping=None)
    fit(by_hand)
    manual = Manual()
    fit(manual)
    assert same(state_of(by_hand), state_of(manual))


def test_one_callback_for_several_modules() -> None:
    given = GradientClipping(percentile=30)
    first, second = Clipped(gradient_clipping=given), Clipped(gradient_clipping=given)
    fit(first)
    fit(second)
    assert same(state_of(first), state_of(second))
    plain = Net()
    fit(plain, given)  # and it clips by itself where it is given to a Trainer
    assert same(state_of(first), state_of(plain))


def test_it_is_left_to_deepspeed() -> None:
    def clip(module: Clipped, **options: Any) -> None:
        trainer = trainer_of(**options)
        # As if it were installed: what is asked is only of which class the strategy is.
        strategy: Any = object.__new__(DeepSpeedStrategy)
        trainer._accelerator_connector.strategy = strategy
        optimizer = torch.optim.SGD(module.parameters())
        strategy._lightning_module, strategy._optimizers = module, [optimizer]
        module.trainer = trainer
        (callback,) = module.configure_callbacks()
        callback.setup(trainer, module, "fit")
        callback.on_fit_start(trainer, module)
        module.net(torch.ones(2, 3)).sum().backward()
        before = [p.grad.clone() for p in module.parameters() if p.grad is not None]
        module.configure_gradient_clipping(optimizer, 0.01, "norm")
        for p, grad in zip(module.parameters(), before, strict=True):
            assert torch.equal(p.grad, grad)  # type: ignore[arg-type]

    clip(clipped(), gradient_clip_val=0.01)
    message = r"GradientClipping can't clip under DeepSpeedStrategy.*Trainer\(gradient_clip_v"
    with pytest.raises(MisconfigurationException, match=message):
        clip(Clipped(gradient_clipping=1.0))
