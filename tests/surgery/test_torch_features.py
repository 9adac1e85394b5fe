"""How swapped layers live with what torch itself does to modules."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import override

import lightning_kernels
from lightning_practices.nn import LayerNorm
from lightning_practices.surgery import Report, fuse, unfuse
from tests.surgery.models import Tuned, assert_equal, encoder, mlp, randomise, sequence, step


class Doubled(nn.Module):
    """A parametrization."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def right_inverse(self, x: Tensor) -> Tensor:
        return x / 2


def test_scripted_layers_are_skipped_and_restored_ones_can_be_scripted() -> None:
    model = nn.ModuleDict({"scripted": torch.jit.script(mlp()), "plain": mlp()})
    report = fuse(model)
    assert [r.names for r in report.replaced] == [("plain.1",), ("plain.2",)]
    assert [s.names for s in report.skipped] == [("scripted.1",), ("scripted.2",)]
    assert {s.reason for s in report.skipped} == {"TorchScript has already compiled it"}
    unfuse(model)
    x = torch.randn(4, 8)
    scripted = torch.jit.script(model["plain"].eval())
    assert torch.equal(scripted(x), model["plain"](x))


@pytest.mark.parametrize("build", [lambda: nn.LayerNorm(8), lambda: Tuned(8)])
@pytest.mark.parametrize("removed", ["before restore", "after restore"])
@pytest.mark.parametrize("registered", ["before fuse", "after fuse"])
def test_parametrized_layers(
    build: Callable[[], nn.Module], removed: str, registered: str, device: str
) -> None:
    layer = build().to(device, torch.float64)
    kind = type(layer)
    randomise(layer)
    x = torch.randn(4, 8, dtype=torch.float64, device=device)
    expected = layer(x)
    steps: list[Callable[[], object]] = [
        lambda: parametrize.register_parametrization(layer, "weight", Doubled()),
        lambda: fuse(layer),
    ]
    for act in steps if registered == "before fuse" else reversed(steps):
        act()
    assert type(layer).__name__ == f"Parametrized{kind.__name__}"
    assert type(layer).forward is LayerNorm.forward
    assert isinstance(layer, kind)
    assert torch.equal(layer(x), expected)
    assert fuse(layer) == Report()
    if removed == "before restore":
        parametrize.remove_parametrizations(layer, "weight")
        assert type(layer).forward is LayerNorm.forward
        assert torch.equal(layer(x), expected)
        unfuse(layer)
    else:
        unfuse(layer)
        assert type(layer).forward is nn.LayerNorm.forward
        assert torch.equal(layer(x), expected)
        parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is kind
    assert torch.equal(layer(x), expected)


def test_copies_of_a_parametrized_layer_are_swapped_apart() -> None:
    first = nn.LayerNorm(8)
    parametrize.register_parametrization(first, "weight", Doubled())
    second = copy.deepcopy(first)  # torch lets both share one class
    fuse(first)
    assert type(first).forward is LayerNorm.forward
    assert type(second).forward is nn.LayerNorm.forward
    fuse(second)
    parametrize.remove_parametrizations(first, "weight")
    x = torch.randn(4, 8)
    assert torch.equal(first(x), second(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")  # torch's own
def test_old_weight_norm_hooks_keep_working(device: str) -> None:
    layer: Any = nn.LayerNorm(8).to(device, torch.float64)
    nn.utils.weight_norm(layer)
    x = torch.randn(4, 8, dtype=torch.float64, device=device)
    before = step(layer, x)
    fuse(layer)
    assert_equal(step(layer, x), before)
    with torch.no_grad():
        layer.weight_g.mul_(3)
    expected = nn.functional.layer_norm(x, (8,), 3 * layer.weight.detach(), layer.bias)
    assert torch.allclose(layer(x), expected, rtol=1e-12)
    nn.utils.remove_weight_norm(layer)
    assert torch.allclose(layer(x), expected, rtol=1e-12)


def test_transformer_fast_path_is_taken_and_equal(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    model = encoder().to(device).eval()
    x = sequence().to(device)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2], device=device)
    with torch.no_grad():
        expected = [layer(x, src_key_padding_mask=padding) for layer in model.layers]
    fuse(model)
    fused = torch._transformer_encoder_layer_fwd
    calls = []

    def counted(*args: Any) -> Tensor:
        calls.append(1)
        return fused(*args)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", counted)
    with torch.no_grad():
        actual = [layer(x, src_key_padding_mask=padding) for layer in model.layers]
    assert len(calls) == 2
    assert_equal(actual, expected)
    assert type(model.layers[0].norm1) is LayerNorm


def test_attention_has_no_layer_to_swap() -> None:
    assert fuse(nn.MultiheadAttention(8, 2, dropout=0.1)) == Report()


@pytest.mark.parametrize("fullgraph", [True, False])
def test_compiled_model_compiles_again(fullgraph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp().double().eval()
    x = torch.randn(4, 8, dtype=torch.float64)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=fullgraph)
    expected = compiled(x)
    assert [r.names for r in fuse(compiled).replaced] == [("_orig_mod.1",), ("_orig_mod.2",)]
    monkeypatch.setattr(lightning_kernels, "layer_norm", lambda x, *args, **_: 0 * x)
    assert torch.equal(compiled(x), model[3](torch.zeros_like(x)))  # the new forward is run
    unfuse(compiled)
    assert torch.equal(compiled(x), expected)
    torch.compiler.reset()


def test_accelerated_model_compiles_in_one_graph() -> None:
    model = encoder().double()
    x = sequence().double()
    expected = step(model, x)
    fuse(model)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    for actual, exact in zip(step(compiled, x), expected, strict=True):
        assert torch.allclose(actual, exact, rtol=1e-9)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of checks of shapes
def test_a_fused_model_is_traced_by_torchs_operators() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LayerNorm(5)
    ).eval()
    x = torch.randn(2, 4, 5, 5)
    expected = model(x)
    fuse(model)
    traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x), expected)
    torch.testing.assert_close(model(x), expected)
