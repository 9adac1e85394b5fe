"""Penalties in a Trainer: what a fit with the penalty in its loss would have done."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW
from typing_extensions import override

from lightning_practices.callbacks import GradientClipping, Penalty, SkipNonFinite
from lightning_practices.mixins import GradientClippingMixin
from tests.callbacks.clipping import (
    BATCHES,
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
from tests.callbacks.penalised import InLoss, ManualInLoss, Seen, by_formula, doubled, plain
from tests.callbacks.scripted import FILTERS, At, fail, same, state_of

pytestmark = FILTERS

BOTH: dict[str, Any] = {"l1": 0.1, "l2": 0.3}


def scaler(scale: float = 2.0**8) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


# As if in the loss.


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}], ids=str)
@pytest.mark.parametrize("kind", [SGD, Adam])
@pytest.mark.parametrize("strengths", [{"l1": 0.1}, {"l2": 0.3}, BOTH], ids=str)
def test_one_optimizer(strengths: Any, kind: Any, options: Any) -> None:
    module, expected = plain(kind=kind), InLoss(kind=kind, **strengths)
    fit(module, Penalty(**strengths), data=doubled(), **options)
    fit(expected, data=doubled(), **options)
    # What is too little for Adam's epsilon isn't told from rounding.
    assert_same(module.seen, expected.seen, rtol=1e-10, atol=1e-13)
    unlike = plain(kind=kind)
    fit(unlike, data=doubled(), **options)
    assert not torch.allclose(unlike.net[0].weight, module.net[0].weight, rtol=1e-3)


def test_fewer_batches_at_the_end_of_an_epoch() -> None:
    module, raw = plain(), Raw()
    fit(module, raw, Penalty(l2=0.5), data=doubled(), accumulate_grad_batches=4)
    assert len(module.seen) == 4  # of 4, 2, 4, 2 batches
    for seen, w, grads in zip(module.seen, raw.weights, raw.grads, strict=True):
        assert torch.equal(seen[0], grads[0] + 0.5 * w[0])  # type: ignore[arg-type, operator]


def test_several_optimizers_under_manual_optimization() -> None:
    module, expected = Manual().double(), ManualInLoss(**BOTH)
    fit(module, Penalty(**BOTH), data=doubled())
    fit(expected, data=doubled())
    assert_same(module.seen, expected.seen, rtol=1e-12, atol=1e-14)
    assert_same(module.other, expected.other, rtol=1e-12, atol=1e-14)
    assert len(module.other) == BATCHES


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_16_mixed(fused: bool, manual: bool) -> None:
    weights, logs = [], []
    for plugins in ([scaler()], [scaler(1.0)]):  # gradients of different scales, if not unscaled
        module: Net = (Manual if manual else Net)(fused=fused)
        fit(module, Penalty(**BOTH), plugins=plugins, logger=(logger := Noted()))
        weights.append([p.detach() for p in module.parameters()])
        logs.append(logger.of("penalty"))
    for mine, right in zip(*weights, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-3, atol=1e-4)  # products are in float16
    assert logs[0] == pytest.approx(logs[1], rel=1e-3)
    bare: Net = (Manual if manual else Net)(fused=fused)
    fit(bare, plugins=[scaler()])
    assert not torch.allclose(bare.net[0].weight, weights[0][0], rtol=0.05, atol=0.01)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_the_gradient_has_it_exactly_in(precision: Any) -> None:
    module, raw = Net(), Raw()
    fit(module, raw, Penalty(l2=0.5), precision=precision)
    weights = {id(p): i for i, p in enumerate(module.net.parameters())}
    penalised = {weights[id(module.net[i].weight)] for i in (0, 2)}
    for seen, w, grads in zip(module.seen, raw.weights, raw.grads, strict=True):
        for i, (mine, value, grad) in enumerate(zip(seen, w, grads, strict=True)):
            assert grad is not None
            right = grad + 0.5 * value if i in penalised else grad
            assert mine is not None
            assert mine.dtype == grad.dtype
            torch.testing.assert_close(mine, right)


def test_what_the_step_hides_is_penalised_too() -> None:
    class Hidden(Net):
        @override
        def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
            loss.backward()

    module, expected = Hidden().double(), InLoss(**BOTH)
    fit(module, Penalty(**BOTH), data=doubled())
    fit(expected, data=doubled())
    assert_same(module.seen, expected.seen, rtol=1e-12, atol=1e-14)


def test_weights_without_a_gradient_are_left_alone() -> None:
    class Half(Net):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(2, 2)
            self.net[2].weight.requires_grad_(False)

        @override
        def configure_optimizers(self) -> Any:
            return SGD(self.parameters(), lr=0.1)

    module, before = Half(), state_of(Half())
    fit(module, Penalty(**BOTH, proximal=True))
    after = state_of(module)
    for name in ("unused.weight", "unused.bias", "net.2.weight"):
        assert torch.equal(after[name], before[name]), name
    assert not torch.equal(after["net.0.weight"], before["net.0.weight"])


def test_what_is_spared() -> None:
    module, raw = plain(), Raw()
    fit(module, raw, Penalty(l2=0.5, exclude=["bias", "net.0.*"]), data=doubled())
    for seen, w, grads in zip(module.seen, raw.weights, raw.grads, strict=True):
        assert all(torch.equal(seen[i], grads[i]) for i in (0, 1, 3))  # type: ignore[arg-type]
        assert torch.equal(seen[2], grads[2] + 0.5 * w[2])  # type: ignore[arg-type, operator]
    module, raw = plain(), Raw()
    fit(module, raw, Penalty(l2=0.5, exclude=[]), data=doubled())
    for seen, w, grads in zip(module.seen, raw.weights, raw.grads, strict=True):
        for mine, value, grad in zip(seen, w, grads, strict=True):
            assert torch.equal(mine, grad + 0.5 * value)  # type: ignore[arg-type, operator]


# Before clipping.


class WithMixin(GradientClippingMixin, Net):
    pass


@pytest.mark.parametrize("how", ["callback", "before", "fused", "mixin", "trainer"])
def test_it_is_added_before_clipping(how: str) -> None:
    clipping = GradientClipping(2.0, fused=how == "fused")
    options = {"fused": True} if how == "fused" else {}
    module, raw = plain(**options), Raw()
    if how == "mixin":
        module = WithMixin(gradient_clipping=2.0).double()
    callbacks: dict[str, list[Callback]] = {
        "callback": [Penalty(**BOTH), clipping], "before": [clipping, Penalty(**BOTH)],
        "fused": [clipping, Penalty(**BOTH)],
    }  # fmt: skip
    given = callbacks.get(how, [Penalty(**BOTH)])
    clips = {"gradient_clip_val": 2.0} if how == "trainer" else {}
    fit(module, raw, SkipNonFinite(), *given, data=doubled(), **clips)
    expected = InLoss(**BOTH)
    fit(expected, GradientClipping(2.0), data=doubled())
    for name, weight in state_of(expected).items():
        # The factor by which fused optimizers multiply gradients is in float32.
        error = 1e-6 if how == "fused" else 1e-10
        torch.testing.assert_close(state_of(module)[name], weight, rtol=error, atol=error)
    pairs = zip(raw.weights, raw.grads, strict=True)
    apart = [by_hand(w, g, "norm", 2.0) for w, g in pairs]
    assert any(not torch.allclose(a[0], b[0]) for a, b in zip(apart, expected.seen, strict=True))  # type: ignore[arg-type]


def test_clipping_under_16_mixed_and_manual_optimization() -> None:
    for kind, fused in ((Net, False), (Net, True), (Manual, False), (Manual, True)):
        weights = []
        for callbacks in ([0, 1], [1, 0]):
            both = [Penalty(**BOTH), GradientClipping(1.0)]
            module = kind(fused=fused)
            fit(module, *(both[i] for i in callbacks), plugins=[scaler()])
            weights.append(state_of(module))
        assert same(*weights)


def test_clipping_by_hand_before_the_step_is_refused() -> None:
    class ByHand(GradientClippingMixin, Manual):
        pass

    message = "under manual optimization GradientClippingMixin clips before the step and so before"
    with pytest.raises(MisconfigurationException, match=message):
        fit(ByHand(gradient_clipping=1.0), Penalty(l2=0.1))


# What is logged.


def test_the_value_apart_from_the_loss() -> None:
    class Logs(Net):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss)
            return loss

    module, logger = Logs(), Noted()
    fit(module, seen := Seen(**BOTH), GradientClipping(1.0), logger=logger)
    assert logger.of("penalty") == pytest.approx(seen.values, rel=1e-5)
    fit(Logs(), seen := Seen(**BOTH), logger=(rare := Noted()), log_every_n_steps=4)
    assert [*rare.steps] == [3, 7, 11]
    assert rare.of("penalty") == pytest.approx(seen.values[3::4], rel=1e-5)
    assert len(set(logger.of("penalty"))) == len(seen.values)


@pytest.mark.parametrize(("logger", "computed"), [(Noted(), 3), (False, 0)])
def test_it_is_computed_only_to_be_logged(
    logger: Any, computed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def value(weights: Any, **_: float) -> torch.Tensor:
        calls.append(len(weights))
        return torch.zeros(())

    monkeypatch.setattr("lightning_practices.callbacks._penalty.penalty", value)
    fit(Net(), Penalty(**BOTH), logger=logger, log_every_n_steps=4)
    assert calls == [2] * computed


def test_of_several_optimizers_and_callbacks() -> None:
    logger = Noted()
    callbacks = Penalty(l1=0.1), Penalty(l2=0.1)
    fit(Manual(), *callbacks, logger=logger, max_epochs=1)
    assert set(logger.steps[1]) == {"penalty", "penalty-1", "penalty2", "penalty2-1"}
    assert set(logger.steps[0]) == {"penalty", "penalty2"}
    start = Manual()
    assert logger.steps[0]["penalty"] == pytest.approx(
        0.1 * start.net[0].weight.abs().sum().item(), rel=1e-5
    )
    module, expected = plain(), InLoss(l1=0.1, l2=0.2)
    fit(module, Penalty(l1=0.1), Penalty(l2=0.2), data=doubled())
    fit(expected, data=doubled())
    assert_same(module.seen, expected.seen, rtol=1e-12, atol=1e-14)


# A second reason to shrink.


def test_weight_decay_of_the_same_weights() -> None:
    message = r"AdamW decays 4 of the parameters .* \(weight_decay=0.01\), so both shrink them"
    with pytest.warns(UserWarning, match=message):
        fit(Net(AdamW), Penalty(l2=0.1, exclude=[]), max_epochs=1)
    fit(Net(AdamW, weight_decay=0.0), Penalty(l2=0.1), max_epochs=1)
    fit(Net(AdamW), Penalty(), max_epochs=1)

    class Apart(Net):
        @override
        def configure_optimizers(self) -> Any:
            biases: list[dict[str, Any]] = [
                {"params": [self.net[i].bias for i in (0, 2)], "weight_decay": 0.1}
            ]
            return SGD([*biases, {"params": [self.net[i].weight for i in (0, 2)]}], lr=0.1)

    fit(Apart(), Penalty(l2=0.1), max_epochs=1)


# Fits of every kind.


def test_a_resumed_fit_goes_on_exactly(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(whole := Net(Adam), Penalty(l1=0.05, proximal=True), save, max_epochs=3)
    resumed = Net(Adam)
    fit(resumed, Penalty(l1=0.05, proximal=True), max_epochs=3, resume=tmp_path / "epoch=0.ckpt")
    assert same(state_of(whole), state_of(resumed))
    checkpoint = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    assert "Penalty" not in str(checkpoint["callbacks"].keys())


def test_fast_dev_run_and_no_strength_at_all() -> None:
    module = Net()
    fit(module, Penalty(**BOTH), fast_dev_run=True)
    assert len(module.seen) == 1
    module, bare = Net(), Net()
    fit(module, Penalty(proximal=True))
    fit(bare)
    assert same(state_of(module), state_of(bare))


def test_hooks_of_a_fit_end_with_it() -> None:
    kept: list[Any] = []

    class Keeps(Net):
        @override
        def configure_optimizers(self) -> Any:
            kept.append(SGD(self.parameters(), lr=0.1))
            return kept[-1]

    penalty = Penalty(l1=0.1, proximal=True)
    fit(Keeps(), penalty, max_epochs=1)
    with pytest.raises(ValueError, match="a user's mistake"):
        fit(Keeps(), penalty, At(2, fail), max_epochs=1)
    for optimizer in kept:
        assert not optimizer._optimizer_step_post_hooks
    trainer = trainer_of(penalty)
    trainer.fit(first := Keeps(), loader())
    trainer.fit_loop.max_epochs = 4
    trainer.fit(first, loader())
    fit(second := Keeps(), Penalty(l1=0.1, proximal=True), max_epochs=4)
    assert same(state_of(first), state_of(second))


def test_a_compiled_part() -> None:
    module, expected = plain(), InLoss(**BOTH)
    module.net = torch.compile(module.net, backend="eager")
    fit(module, Seen(**BOTH), data=doubled())
    fit(expected, data=doubled())
    assert by_formula(module, **BOTH).item() == pytest.approx(
        by_formula(expected, **BOTH).item(), rel=1e-10
    )


# What is refused.


@pytest.mark.parametrize(("name", "arguments"), [("l1", (-1.0, 0.0)), ("l2", (0.0, -1.0))])
def test_bad_strengths(name: str, arguments: tuple[float, float]) -> None:
    with pytest.raises(
        ValueError, match=f"{name} has to be a finite number, at least 0, but got -1"
    ):
        Penalty(*arguments)


def test_bad_choices() -> None:
    with pytest.raises(ValueError, match=r"'head.\*' is none of 'norm', 'bias', 'embedding' and"):
        fit(Net(), Penalty(l2=0.1, exclude=["head.*"]))
    message = r"Net has no weight to penalise: exclude=\('\*',\) leaves none"
    with pytest.raises(MisconfigurationException, match=message):
        fit(Net(), Penalty(l2=0.1, exclude=["*"]))


def test_optimizers_that_it_does_not_fit() -> None:
    with pytest.raises(MisconfigurationException, match="LBFGS compares losses"):
        fit(Net(LBFGS), Penalty(l2=0.1))
    with pytest.raises(MisconfigurationException, match=r"SGD\(maximize=True\) would let Penalty"):
        fit(Net(maximize=True), Penalty(l2=0.1))

    class Rateless(SGD):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params)
            for group in self.param_groups:
                del group["lr"]

    with pytest.raises(MisconfigurationException, match="by the learning rate, and Rateless has"):
        fit(Net(Rateless), Penalty(l1=0.1, proximal=True))


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_it_does_not_fit(strategy: Any) -> None:
    trainer = trainer_of()
    # As if it were installed: what is asked is only of which class the strategy is.
    trainer._accelerator_connector.strategy = object.__new__(strategy)
    with pytest.raises(MisconfigurationException, match=f"under {strategy.__name__}, .*: use Mod"):
        Penalty(l2=0.1).setup(trainer, Net(), "fit")
    Penalty(l2=0.1).setup(trainer, Net(), "validate")
