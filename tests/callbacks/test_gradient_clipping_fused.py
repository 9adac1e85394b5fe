"""GradientClipping that leaves scaling to a fused optimizer."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from typing_extensions import override

from lightning_practices.callbacks import GradientClipping
from lightning_practices.mixins import GradientClippingMixin
from lightning_practices.optim import clips_in_step
from tests.callbacks.clipping import BATCHES, Manual, Net, Noted, Raw, fit
from tests.callbacks.scripted import FILTERS

KINDS: list[Any] = [torch.optim.SGD, torch.optim.AdamW]
if clips_in_step(torch.optim.Adagrad([torch.zeros(1)], fused=True)):  # not in torch 2.11
    KINDS.append(torch.optim.Adagrad)

OPTIONS: dict[str, Any] = {"kind": torch.optim.AdamW, "lr": 0.05, "fused": True}
pytestmark = FILTERS

LIMIT = 5.0  # some steps exceed it and others don't


def half(init_scale: float = 2.0**10) -> list[MixedPrecision]:
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=3)
    return [MixedPrecision("16-mixed", "cpu", scaler)]


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def assert_same_fit(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 2}, {"precision": "64-true"}], ids=str
)
def test_as_clipped_before_the_step(options: dict[str, Any]) -> None:
    ours, theirs, bare, raw = Net(**OPTIONS), Net(**OPTIONS), Net(**OPTIONS), Raw()
    logs, others = Noted(), Noted()
    fit(ours, GradientClipping(LIMIT, fused=True), logger=logs, **options)
    fit(theirs, raw, GradientClipping(LIMIT), logger=others, **options)
    fit(bare, **options)
    assert_same_fit(ours, theirs)
    assert not torch.allclose(weights(ours), weights(bare), atol=1e-3)
    assert min(raw.norms()) < LIMIT < max(raw.norms())
    for name in ("grad_norm", "grad_norm_clipped", "grad_clipped_fraction"):
        assert logs.of(name) == pytest.approx(others.of(name), rel=1e-4)


def test_of_the_module() -> None:
    class Clipped(GradientClippingMixin, Net):
        pass

    ours = Clipped(gradient_clipping=GradientClipping(LIMIT, fused=True), **OPTIONS)
    adopting = Clipped(gradient_clipping=GradientClipping(fused=True), **OPTIONS)
    theirs = Net(**OPTIONS)
    fit(ours)
    fit(adopting, gradient_clip_val=LIMIT)
    fit(theirs, GradientClipping(LIMIT))
    assert_same_fit(ours, theirs)
    assert_same_fit(adopting, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_16_mixed(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As clipping by a threshold times the loss scale, but that it is never read."""
    options = {**OPTIONS, "kind": kind}
    ours, theirs = Net(**options), Net(**options)
    plain, fused = half(2.0**40), half(2.0**40)  # too large at first: steps are skipped
    trainer = fit(theirs, GradientClipping(LIMIT), plugins=plain, max_epochs=8)
    with monkeypatch.context() as patch:
        patch.setattr(fused[0].scaler, "get_scale", None)
        again = fit(ours, GradientClipping(LIMIT, fused=True), plugins=fused, max_epochs=8)
    assert_same_fit(ours, theirs)
    assert again.global_step == trainer.global_step
    mine, other = (plugin[0].scaler.state_dict() for plugin in (fused, plain))  # type: ignore[union-attr]
    assert mine == other
    assert mine["scale"] < 2.0**40


def test_manual_optimization() -> None:
    ours, theirs = Manual(**OPTIONS), Manual(**OPTIONS)
    fit(ours, GradientClipping(LIMIT, fused=True))
    fit(theirs, GradientClipping(LIMIT))
    assert_same_fit(ours, theirs)


@pytest.mark.parametrize("mixed", [False, True])
def test_manual_optimization_of_the_module(mixed: bool) -> None:
    class Clipped(GradientClippingMixin, Manual):
        @override
        def before_step(self, optimizer: Any) -> None:
            self.clip_gradients_of(optimizer)

    ours = Clipped(gradient_clipping=GradientClipping(LIMIT, fused=True), **OPTIONS)
    theirs = Clipped(gradient_clipping=LIMIT, **OPTIONS)
    fit(ours, plugins=half() if mixed else None)
    fit(theirs, plugins=half() if mixed else None)
    assert_same_fit(ours, theirs)


def test_warm_up_and_resuming(tmp_path: Path) -> None:
    whole, resumed = Net(**OPTIONS), Net(**OPTIONS)
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    first, second = (GradientClipping(20.0, warmup_steps=2 * BATCHES, fused=True) for _ in "ab")
    fit(whole, first, save, max_epochs=3)
    fit(resumed, second, max_epochs=3, resume=tmp_path / "epoch=0.ckpt")
    assert torch.equal(weights(whole), weights(resumed))


def test_layers_are_logged_without_the_loss_scale() -> None:
    logs, others = Noted(), Noted()
    for fused, logger in ((True, logs), (False, others)):
        clipping = GradientClipping(LIMIT, log_layers="top1", fused=fused)
        fit(Net(**OPTIONS), clipping, logger=logger, plugins=half(), max_epochs=1)
    assert logs.steps[0].keys() == others.steps[0].keys()
    for name, value in others.steps[0].items():
        assert logs.steps[0][name] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "value"}, "leave out algorithm='value', or fused"),
        ({"groups": {"net.*": 1.0}}, "leave out groups, or fused"),
        ({"value": None, "percentile": 10}, "leave out percentile=10, or fused"),
    ],
)
def test_contradictions(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientClipping(**{"value": 1.0, "fused": True, **arguments})


def test_without_a_value() -> None:
    with pytest.raises(MisconfigurationException, match="needs a largest norm, but got value=None"):
        fit(Net(**OPTIONS), GradientClipping(fused=True))


def test_an_algorithm_of_the_trainer_that_is_not_the_norm() -> None:
    class Clipped(GradientClippingMixin, Net):
        pass

    with pytest.raises(
        MisconfigurationException, match=r"but got value=1\.0 and algorithm='value': give"
    ):
        fit(
            Clipped(gradient_clipping=GradientClipping(fused=True), **OPTIONS),
            gradient_clip_val=1.0,
            gradient_clip_algorithm="value",
        )


def test_an_optimizer_that_is_not_fused() -> None:
    with pytest.raises(MisconfigurationException, match="but this SGD can't: make it with fused=T"):
        fit(Net(), GradientClipping(1.0, fused=True))


def test_a_step_of_nan_is_as_without() -> None:
    class Nan(Net):
        @override
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * math.nan if batch_idx == 3 else loss

    module = Nan(**OPTIONS)
    fit(module, GradientClipping(LIMIT, fused=True), max_epochs=1)
    assert weights(module).isnan().all()  # torch's own clipping spreads it to all, too
