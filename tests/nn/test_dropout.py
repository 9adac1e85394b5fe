import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import lightning_kernels
from lightning_practices.nn import Dropout


@pytest.mark.parametrize("args", [(), (0.25,), (0.0, True), (1.0,)])
def test_is_built_printed_and_saved_like_torchs(args: tuple[Any, ...]) -> None:
    theirs, ours = nn.Dropout(*args), Dropout(*args)
    assert isinstance(ours, nn.Dropout)
    assert repr(ours) == repr(theirs)
    assert vars(ours) == vars(theirs)
    assert not ours.state_dict()


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_probability_outside_zero_to_one_raises(p: float) -> None:
    with pytest.raises(ValueError, match=f"between 0 and 1, but got {p}"):
        Dropout(p)


def test_forward_is_the_fused_function(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(lightning_kernels, "dropout", lambda *args: calls.append(args))
    x = torch.randn(4)
    Dropout(0.3, inplace=True)(x)
    Dropout(0.2).eval()(x)
    assert [args[1:] for args in calls] == [(0.3, True, True), (0.2, False, False)]
    assert all(args[0] is x for args in calls)


def test_float64_is_torchs_bit_for_bit(device: str) -> None:
    x = torch.randn(64, 32, dtype=torch.float64, device=device, requires_grad=True)
    torch.manual_seed(1)
    (theirs,) = torch.autograd.grad((expected := nn.Dropout(0.3)(x)).sum(), x)
    torch.manual_seed(1)
    (ours,) = torch.autograd.grad((actual := Dropout(0.3)(x)).sum(), x)
    assert torch.equal(actual, expected)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_zeroes_its_share_and_scales_the_rest(dtype: torch.dtype, device: str) -> None:
    x = (1 + torch.rand(64, 64, dtype=dtype, device=device)).requires_grad_()  # never zero itself
    y = Dropout(0.25)(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    kept = y != 0
    share = kept.double().mean().item()
    assert abs(share - 0.75) < 5 * (0.75 * 0.25 / x.numel()) ** 0.5
    exact = torch.where(kept, x.double() / 0.75, 0.0)
    assert (y.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
    scale = torch.tensor(1 / 0.75, dtype=dtype, device=device)
    assert torch.equal(grad, torch.where(kept, scale, torch.zeros_like(scale)))


def test_evaluation_returns_its_input_and_draws_nothing(device: str) -> None:
    x = torch.randn(4, 32, device=device)
    before = torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), before)


def test_inplace_writes_over_its_input(device: str) -> None:
    x = 1 + torch.rand(4, 32, device=device)
    original = x.clone()
    y = Dropout(0.5, inplace=True)(x)
    assert y is x
    assert torch.equal(x, torch.where(x != 0, original * 2, torch.zeros_like(x)))
    assert 0 < (x == 0).sum() < x.numel()


def test_everything_is_dropped_at_one_and_nothing_at_zero(device: str) -> None:
    x = torch.randn(4, 32, device=device)
    assert torch.equal(Dropout(1.0)(x), torch.zeros_like(x))
    assert torch.equal(Dropout(0.0)(x), x)


def test_seed_repeats_the_mask_and_calls_differ(device: str) -> None:
    x, layer = torch.ones(32, 32, device=device), Dropout(0.5)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)


def test_copies_follow_torchs_generator(device: str) -> None:
    x, layer = torch.ones(32, 32, device=device), Dropout(0.5)
    masks = []
    for twin in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is Dropout
        torch.manual_seed(3)
        masks.append(twin(x))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])
