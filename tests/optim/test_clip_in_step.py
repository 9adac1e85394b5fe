"""Clipping by fused optimizers in their step, against clipping before it."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from lightning_kernels import clip_grad_norm_
from lightning_practices.optim import clip_in_step
from lightning_practices.optim._clip_in_step import clips_in_step
from tests import processes

STEPS = 6
LIMIT = 8.0  # some steps exceed it and others don't
FUSED: dict[str, Callable[..., Optimizer]] = {
    "SGD": partial(SGD, lr=0.05, fused=True),
    "momentum": partial(SGD, lr=0.05, momentum=0.9, fused=True),
    "Adam": partial(Adam, lr=0.05, fused=True),
    "AdamW": partial(AdamW, lr=0.05, fused=True),
}
if clips_in_step(Adagrad([torch.zeros(1)], fused=True)):  # not in torch 2.11
    FUSED["Adagrad"] = partial(Adagrad, lr=0.05, fused=True)


def assert_close(ours: Any, theirs: Any) -> None:
    """Compare by the largest element: all is float64 but the number that gradients are divided by.

    Six steps of 2**-24 each, and what training makes of a small difference.
    """
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_close(ours[key], theirs[key])
    else:
        assert (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)).double()


def loss_of(model: nn.Module, step: int) -> Tensor:
    torch.manual_seed(step)
    loss: Tensor = (model(torch.randn(8, 5).double()) - (step % 3)).square().sum() / 8
    return loss


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", FUSED)
def test_as_clipped_before(name: str) -> None:
    ours, theirs = network(), network()
    mine, other = FUSED[name](ours.parameters()), FUSED[name](theirs.parameters())
    exceeded = []
    for step in range(STEPS):
        for model in (ours, theirs):
            model.zero_grad()
            loss_of(model, step).backward()
        norm = clip_in_step(mine, LIMIT)
        exceeded.append(norm.item() > LIMIT)
        assert_close(norm, clip_grad_norm_(theirs.parameters(), LIMIT))
        mine.step()
        other.step()
        assert_close(gradients(ours), gradients(theirs))
        assert_close(weights(ours), weights(theirs))
    assert len(set(exceeded)) == 2
    assert not hasattr(mine, "grad_scale")


def test_one_step_alone_is_clipped() -> None:
    """Also where a step was announced and never came."""
    model = network()
    optimizer = FUSED["SGD"](model.parameters())
    loss_of(model, 0).backward()
    for _ in range(3):
        clip_in_step(optimizer, 1e-3)
    optimizer.step()
    assert gradients(model).norm().item() == pytest.approx(1e-3, rel=1e-3)
    model.zero_grad()
    loss_of(model, 1).backward()
    before = gradients(model).clone()
    optimizer.step()
    assert torch.equal(gradients(model), before)
    clip_in_step(optimizer, 1e-3)
    optimizer.step()
    assert gradients(model).norm().item() == pytest.approx(1e-3, rel=1e-3)


def scaled_fit(name: str, in_step: bool, bad: int | None = None) -> tuple[Any, ...]:
    """Take steps with a scaler, one of them with a gradient that is not finite."""
    model = network()
    optimizer = FUSED[name](model.parameters())
    scaler = GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    norms, history = [], []
    for step in range(STEPS):
        model.zero_grad()
        scaler.scale(loss_of(model, step)).backward()
        if step == bad:
            next(p for p in model.parameters()).grad[0, 0] = math.inf  # type: ignore[index]
        if in_step:
            norms.append(clip_in_step(optimizer, LIMIT, scaler=scaler).item())
        else:
            scaler.unscale_(optimizer)
            norms.append(clip_grad_norm_(model.parameters(), LIMIT).item())
        scaler.step(optimizer)
        scaler.update()
        history.append(scaler.get_scale())
    assert not hasattr(optimizer, "grad_scale")
    return weights(model), norms, history, optimizer.state_dict()["state"]


@pytest.mark.parametrize("bad", [None, 2])
@pytest.mark.parametrize("name", FUSED)
def test_scaler_skips_and_unscales_as_with_its_own_pass(name: str, bad: int | None) -> None:
    ours, theirs = scaled_fit(name, True, bad), scaled_fit(name, False, bad)
    assert_close(ours[0], theirs[0])
    assert ours[1] == pytest.approx(theirs[1], rel=1e-6)
    assert ours[2] == theirs[2]
    assert (min(ours[2]) < 1024) == (bad is not None)
    assert_close(ours[3], theirs[3])


def test_scaler_that_is_off() -> None:
    model = network()
    optimizer = FUSED["AdamW"](model.parameters())
    loss_of(model, 0).backward()
    norm = gradients(model).norm()
    scaler = GradScaler("cpu", enabled=False)
    torch.testing.assert_close(clip_in_step(optimizer, 0.5, scaler=scaler), norm)
    scaler.step(optimizer)
    assert gradients(model).norm().item() == pytest.approx(0.5, rel=1e-5)


def test_without_any_gradient() -> None:
    optimizer = FUSED["SGD"](network().parameters())
    assert clip_in_step(optimizer, 1.0).item() == 0
    optimizer.step()


def test_what_would_not_clip() -> None:
    with pytest.raises(ValueError, match="but AdamW doesn't: make it with fused=True"):
        clip_in_step(AdamW(network().parameters()), 1.0)


def test_unscaled_already() -> None:
    model = network()
    optimizer = FUSED["AdamW"](model.parameters())
    scaler = GradScaler("cpu")
    scaler.scale(loss_of(model, 0)).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"scaler.unscale_\(optimizer\) has been called"):
        clip_in_step(optimizer, 1.0, scaler=scaler)


def test_copies_and_states_know_nothing_of_it() -> None:
    model = network()
    optimizer = FUSED["AdamW"](model.parameters())
    loss_of(model, 0).backward()
    clip_in_step(optimizer, 1.0)
    assert "grad_scale" not in str(optimizer.state_dict())
    copied = copy.deepcopy(optimizer.state_dict())
    optimizer.step()
    optimizer.load_state_dict(copied)


# Sharded parameters.


def sharded() -> tuple[float, Tensor]:
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = FUSED["AdamW"](model.parameters())
    norm = torch.zeros(())
    for step in range(STEPS):
        model.zero_grad()
        loss_of(model, step).backward()
        norm = clip_in_step(optimizer, LIMIT)
        optimizer.step()
    whole = [p.full_tensor().detach().flatten() for p in model.parameters()]  # type: ignore[attr-defined]
    return norm.item(), torch.cat(whole)


def test_shards() -> None:
    model = network()
    optimizer = FUSED["AdamW"](model.parameters())
    for step in range(STEPS):
        model.zero_grad()
        loss_of(model, step).backward()
        norm = clip_grad_norm_(model.parameters(), LIMIT).item()
        optimizer.step()
    for ours, after in processes.run(sharded, [()] * 2):
        assert ours == pytest.approx(norm, rel=1e-6)
        assert_close(after, weights(model))
