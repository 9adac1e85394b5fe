"""The layer that ends a block: its state, its children's rates and modes."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_kernels import add_dropout_layer_norm
from lightning_practices import surgery
from lightning_practices.ensembles import monte_carlo_dropout
from lightning_practices.nn import AddDropoutLayerNorm
from lightning_practices.schedules import DropRate


def seeded(function: Any, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    results: tuple[Tensor, Tensor] = function(*args, **options)
    return results


def test_is_its_function_in_training_and_evaluation(device: str) -> None:
    layer = AddDropoutLayerNorm(12, 0.3, 0.4, 0.1, eps=1e-3).to(device)
    nn.init.normal_(layer.weight)
    x, residual = torch.randn(2, 8, 3, 12, device=device)
    for training in (True, False):
        right = seeded(
            add_dropout_layer_norm, x, residual, (12,), layer.weight, layer.bias, p=0.3,
            drop_path=0.4, layer_scale=layer.layer_scale, eps=1e-3, training=training,
        )  # fmt: skip
        copies = (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)))
        for each in copies:
            results = seeded(each.train(training), x, residual)
            assert all(torch.equal(a, b) for a, b in zip(results, right, strict=True))
    _, z = layer.eval()(x)
    torch.testing.assert_close(z, 0.1 * x)


def test_its_state_and_what_it_prints() -> None:
    layer = AddDropoutLayerNorm([2, 6], layer_scale=1e-5, dtype=torch.float64)
    assert isinstance(layer, nn.LayerNorm)
    assert layer.layer_scale is not None
    assert list(layer.state_dict()) == ["weight", "bias", "layer_scale"]
    assert torch.equal(layer.layer_scale, torch.full((2, 6), 1e-5, dtype=torch.float64))
    nn.init.zeros_(layer.layer_scale)
    layer.reset_parameters()
    assert torch.equal(layer.layer_scale, torch.full((2, 6), 1e-5, dtype=torch.float64))
    assert "layer_scale=1e-05" in repr(layer)
    theirs = nn.LayerNorm(6)
    bare = AddDropoutLayerNorm(6)
    bare.load_state_dict(theirs.state_dict(), strict=True)
    assert bare.layer_scale is None
    assert not list(AddDropoutLayerNorm(6, elementwise_affine=False).parameters())


def test_surgery_leaves_it_as_it_is(device: str) -> None:
    layer = AddDropoutLayerNorm(6, 0.2, layer_scale=0.1).to(device)
    x = torch.randn(4, 6, device=device)
    for change in (surgery.fuse, surgery.unfuse):
        assert not change(layer).replaced
        assert type(layer) is AddDropoutLayerNorm
        assert len(layer(x, x)) == 2


def test_its_rates_are_scheduled(device: str) -> None:
    layer = AddDropoutLayerNorm(6, 0.2, 0.4).to(device)
    schedule = DropRate(layer, "linear")
    schedule.apply(0.0)
    x = torch.randn(50, 6, device=device)
    zero = layer(x, x)[1]
    schedule.restore()
    assert layer.dropout.p == 0.2
    assert layer.drop_path.p == 0.4
    assert torch.equal(zero, 2 * x)
    assert not torch.equal(layer(x, x)[1], 2 * x)


@pytest.mark.parametrize("on", ["dropout", "drop_path"])
def test_each_child_may_be_on_alone(on: str, device: str) -> None:
    layer = AddDropoutLayerNorm(6, 0.5, 0.5).to(device).eval()
    getattr(layer, on).train()
    zeros = torch.zeros(200, 6, device=device)
    z = layer(zeros + 1, zeros)[1]
    assert set(z.unique().tolist()) == {0.0, 2.0}
    whole = z.amax(1) == z.amin(1)
    assert whole.all() == (on == "drop_path")


@pytest.mark.parametrize("child", ["dropout", "drop_path"])
@pytest.mark.parametrize("how", ["hook", "pre-hook", "forward", "hook on all modules"])
def test_a_child_that_drops_nothing_still_runs_its_hooks(how: str, child: str, device: str) -> None:
    layer = AddDropoutLayerNorm(6, 0.2, 0.4).to(device).eval()
    target = layer.get_submodule(child)
    handle: Any = None
    if how == "hook":
        target.register_forward_hook(lambda module, args, output: 3 * output)
    elif how == "pre-hook":
        target.register_forward_pre_hook(lambda module, args: (3 * args[0],))
    elif how == "forward":
        target.forward = lambda x: 3 * x
    else:
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, args, output: 3 * output if module is target else None
        )
    x, residual = torch.randn(2, 4, 6, device=device)
    try:
        y, z = layer(x, residual)
    finally:
        if handle is not None:
            handle.remove()
    torch.testing.assert_close(z, residual + 3 * x)
    torch.testing.assert_close(y, nn.functional.layer_norm(z, (6,)))
    calls: list[Any] = []
    target.register_full_backward_hook(lambda module, grad_in, grad_out: calls.append(grad_out))
    layer(x.requires_grad_(), residual)[1].sum().backward()
    assert len(calls) == 1


def test_monte_carlo_dropout_finds_what_drops() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = AddDropoutLayerNorm(6, 0.5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(x, x)[0]
            return y

    prediction = monte_carlo_dropout(Model(), torch.randn(5, 6), task="regression", passes=8)
    assert (prediction.std > 0).all()


@pytest.mark.parametrize(("p", "drop_path", "name"), [(1.5, 0.0, "p"), (0.0, -1.0, "drop_path")])
def test_rates_outside_the_unit_interval(p: float, drop_path: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has to be a number between 0 and 1, but got"):
        AddDropoutLayerNorm(6, p, drop_path)
