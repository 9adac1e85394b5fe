"""What clipping does to the gradients that the optimizer sees, in real fits."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loops.optimization.automatic import Closure
from lightning.pytorch.plugins import MixedPrecision
from lightning_utilities.core.rank_zero import WarningCache
from torch import Tensor

from lightning_practices.callbacks import GradientClipping
from lightning_practices.callbacks._clipping import state as _state
from tests.callbacks.clipping import (
    BATCHES,
    THRESHOLDS,
    WIDTH,
    Gradients,
    Manual,
    Net,
    Raw,
    assert_same,
    by_hand,
    fit,
    norm_of,
)


def clipped(raw: Raw, algorithm: str, value: float) -> list[Gradients]:
    return [
        by_hand(weights, grads, algorithm, value)
        for weights, grads in zip(raw.weights, raw.grads, strict=True)
    ]


def kinds(raw: Raw, expected: list[Gradients]) -> set[bool]:
    """Return whether steps are clipped."""
    return {
        norm_of(after) < norm_of(before) * (1 - 1e-5)
        for before, after in zip(raw.grads, expected, strict=True)
    }


@pytest.mark.parametrize(("algorithm", "value"), THRESHOLDS)
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        pytest.param({"max_epochs": 4}, 4 * BATCHES, id="float32"),
        pytest.param({"precision": "64-true", "max_epochs": 4}, 4 * BATCHES, id="float64"),
        pytest.param({"precision": "bf16-mixed", "max_epochs": 4}, 4 * BATCHES, id="bf16-mixed"),
        pytest.param({"accumulate_grad_batches": 4, "max_epochs": 5}, 10, id="accumulation"),
    ],
)
def test_the_optimizer_sees_what_torch_would_have_clipped(
    algorithm: Any, value: float, options: dict[str, Any], steps: int
) -> None:
    module, raw = Net(), Raw()
    fit(module, raw, GradientClipping(value, algorithm), **options)
    expected = clipped(raw, algorithm, value)
    assert len(module.seen) == steps
    assert True in kinds(raw, expected)
    assert False in kinds(raw, expected) or steps < BATCHES * 4
    assert_same(module.seen, expected)


def test_bfloat16_gradients() -> None:
    module, raw = Net(), Raw()
    fit(module, raw, GradientClipping(0.5), precision="bf16-true")
    assert module.seen[0][0] is not None
    assert module.seen[0][0].dtype == torch.bfloat16
    assert_same(module.seen, clipped(raw, "norm", 0.5))


def test_an_accumulation_that_changes() -> None:
    module, raw = Net(), Raw()
    fit(module, raw, GradientClipping(0.2), GradientAccumulationScheduler({1: 3}))
    assert len(module.seen) == BATCHES + 2
    assert_same(module.seen, clipped(raw, "norm", 0.2))


def test_two_optimizers_each_over_its_own_parameters() -> None:
    module, raw = Manual(), Raw()
    fit(module, raw, GradientClipping(0.2), max_epochs=1)
    expected = clipped(raw, "norm", 0.2)
    first = [grads for grads in expected if grads[0] is not None and grads[0].shape[1] == WIDTH]
    second = [grads for grads in expected if grads[0] is not None and grads[0].shape[1] == 4]
    assert (len(first), len(second)) == (BATCHES, BATCHES // 2)
    assert_same(module.seen, first)
    assert_same(module.other, second)


# Thresholds.


@pytest.mark.parametrize(("algorithm", "value"), THRESHOLDS)
def test_groups_are_clipped_by_themselves(algorithm: Any, value: float) -> None:
    module, raw = Net(), Raw()
    groups = {"net.0.bias": math.inf, "net.0.*": value / 2, "*.bias": value}
    fit(module, raw, GradientClipping(value, algorithm, groups=groups))
    for weights, grads, seen in zip(raw.weights, raw.grads, module.seen, strict=True):
        one = [by_hand(weights[:1], grads[:1], algorithm, value / 2)]
        two = [by_hand(weights[2:3], grads[2:3], algorithm, value)]
        three = [by_hand(weights[3:], grads[3:], algorithm, value)]
        assert_same([seen[:1], seen[1:2], seen[2:3], seen[3:]], [*one, grads[1:2], *two, *three])


def test_warm_up() -> None:
    module, raw = Net(), Raw()
    fit(module, raw, GradientClipping(20.0, groups={"net.2.*": 4.0}, warmup_steps=5))
    for step, (weights, grads, seen) in enumerate(
        zip(raw.weights, raw.grads, module.seen, strict=True)
    ):
        factor = min(1, (step + 1) / 5)
        first = by_hand(weights[:2], grads[:2], "norm", 20.0 * factor)
        second = by_hand(weights[2:], grads[2:], "norm", 4.0 * factor)
        assert_same([seen], [[*first, *second]])


@pytest.mark.parametrize("percentile", [10, 50.0, 100])
@pytest.mark.parametrize("window", [1000, 4])
def test_a_percentile_of_past_norms(
    percentile: float, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_state, "_WINDOW", window)
    module, raw = Net(), Raw()
    fit(module, raw, GradientClipping(percentile=percentile))
    norms, expected = raw.norms(), []
    for step, (weights, grads) in enumerate(zip(raw.weights, raw.grads, strict=True)):
        threshold = np.percentile(norms[max(0, step + 1 - window) : step + 1], percentile)
        expected.append(by_hand(weights, grads, "norm", float(threshold)))
    assert_same(module.seen, expected, rtol=1e-5, atol=1e-6)  # torch's 1e-6 beside the norm
    assert any(norm_of(a) < 0.9 * norm for a, norm in zip(expected, norms, strict=True)) == (
        percentile < 100
    )


class Scripted(Net):
    """Gradients of known norms."""

    def __init__(self, norms: list[float]) -> None:
        super().__init__(lr=0.0)
        self.norms = norms

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net[2].bias.sum() * self.norms[batch_idx]
        return loss


def test_a_norm_that_is_not_finite_is_no_past_norm() -> None:
    module = Scripted([4.0, math.nan, 8.0, math.inf, 0.0, 6.0])
    fit(module, GradientClipping(percentile=50), max_epochs=1)
    seen = [grads[3].item() for grads in module.seen if grads[3] is not None]
    assert seen == pytest.approx([4.0, math.nan, 6.0, math.nan, 0.0, 5.0], nan_ok=True)


def test_gradients_that_are_all_zero_are_left_so() -> None:
    module = Scripted([0.0, 0.0, 2.0, 0.0, 0.0, 0.0])
    fit(module, GradientClipping(percentile=10), max_epochs=1)
    assert [grads[3].item() for grads in module.seen if grads[3] is not None] == pytest.approx(
        [0.0] * 6, abs=1e-37
    )


# Loss scaling, which on the CPU Lightning leaves to whoever passes the plugin.


def half() -> MixedPrecision:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    return MixedPrecision("16-mixed", "cpu", scaler)


@pytest.mark.parametrize(("algorithm", "value"), THRESHOLDS)
def test_16_mixed(algorithm: Any, value: float) -> None:
    module, raw = Net(), Raw()
    fit(module, raw, GradientClipping(value, algorithm), plugins=[half()])
    expected = clipped(raw, algorithm, value)
    assert kinds(raw, expected) == {True, False}
    # The scaler skips steps of too large a scale.
    assert_same(module.seen, [grads for grads in expected if math.isfinite(norm_of(grads))])


class Scaled(Raw):
    """Notes the gradients as they would be of the plain loss, and the scales."""

    def __init__(self, plugin: MixedPrecision) -> None:
        super().__init__()
        self.scaler: Any = plugin.scaler
        self.scales: list[float] = []

    def on_before_optimizer_step(self, *args: Any) -> None:
        super().on_before_optimizer_step(*args)
        self.scales.append(self.scaler.get_scale())
        self.grads[-1] = divided(self.grads[-1], self.scales[-1])


def divided(grads: Gradients, by: float) -> Gradients:
    return [None if grad is None else grad / by for grad in grads]


@pytest.mark.parametrize(("algorithm", "value"), THRESHOLDS)
def test_16_mixed_with_a_fused_optimizer(algorithm: Any, value: float) -> None:
    plugin = half()
    module, raw = Net(fused=True), Scaled(plugin)
    fit(module, raw, GradientClipping(value, algorithm), plugins=[plugin])
    expected = clipped(raw, algorithm, value)
    assert kinds(raw, expected) == {True, False}
    assert len(set(raw.scales)) > 1
    seen = [divided(grads, by) for grads, by in zip(module.seen, raw.scales, strict=True)]
    assert_same(seen, expected)


def test_the_module_is_trained_alike_whoever_unscales() -> None:
    states = []
    for fused in (False, True):
        module = Net(fused=fused)
        fit(module, GradientClipping(0.5), plugins=[half()])
        states.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    torch.testing.assert_close(states[0], states[1])


def test_nothing_is_done_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Closure, "warning_cache", WarningCache())  # it warns once in a process

    class Idle(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    module, clipping = Idle(), GradientClipping(0.1)
    with pytest.warns(UserWarning, match="`training_step` returned `None`"):
        fit(module, clipping, max_epochs=1)
    assert module.seen[1] == [None] * 4
    assert clipping.state_dict()["optimizers"][0]["steps"] == BATCHES - 1
