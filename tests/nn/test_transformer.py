"""Transformer layers with folded ends compute what torch's do, wherever those do it otherwise."""

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.utils.checkpoint import checkpoint

from lightning_practices.nn import TransformerEncoderLayer
from tests.kernels.reference import assert_as_right_as_torch
from tests.nn.transformer_layers import (
    DECODER,
    ENCODER,
    FOLDED,
    VIT,
    call,
    count_folds,
    each_layer,
    gradients,
    inputs,
    pair,
)

kernel = pytest.mark.kernel
MASKS = ["none", "causal", "bool", "float", "padding"]
OPTIONS: dict[str, dict[str, Any]] = {
    "relu": {"batch_first": True},
    "gelu, sequence first": {"activation": "gelu"},
    "tanh, no bias": {"activation": torch.tanh, "batch_first": True, "bias": False},
    "a module, another eps": {"activation": nn.SiLU(), "batch_first": True, "layer_norm_eps": 0.1},
}
CASES = [
    *((ENCODER, True, masks, "relu") for masks in MASKS),
    *((ENCODER, False, "bool", options) for options in OPTIONS),
    (DECODER, True, "float", "relu"),
    (DECODER, False, "padding", "gelu, sequence first"),
    (DECODER, True, "causal", "tanh, no bias"),
    (VIT, True, "none", "relu"),
]


def assert_all_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


def assert_as_right(theirs: Any, ours: Any, masks: str, device: str) -> None:
    """Compare results and gradients with torch's, by float64, nothing dropped."""
    names = [name for name, _ in theirs.named_parameters()]

    def draw() -> tuple[list[Tensor | None], Tensor]:
        parameters = [p.detach() + 0.1 * torch.randn_like(p) for p in theirs.parameters()]
        x, memory = inputs(device)
        return [x, memory, *parameters], torch.randn_like(x)

    def of(layer: Any) -> Any:
        def function(x: Tensor, memory: Tensor, *parameters: Tensor) -> Tensor:
            def module(*args: Tensor) -> Tensor:
                return call(layer, *args, masks=masks)

            wrapper = Holder(layer, module)
            state = {f"layer.{name}": p for name, p in zip(names, parameters, strict=True)}
            y: Tensor = functional_call(wrapper, state, (x, memory))
            return y + 0 * memory.sum()  # which an encoder has no use for

        return function

    assert_as_right_as_torch(of(ours), of(theirs), draw)


class Holder(nn.Module):
    """Calls a function in which its child takes part."""

    def __init__(self, layer: nn.Module, function: Any) -> None:
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, *args: Tensor) -> Tensor:
        y: Tensor = self.function(*args)
        return y


@pytest.mark.parametrize(("kind", "norm_first", "masks", "options"), CASES)
def test_as_right_as_torch(
    kind: str, norm_first: bool, masks: str, options: str, device: str
) -> None:
    theirs, ours = pair(kind, norm_first, **({} if kind == VIT else OPTIONS[options]))
    assert_as_right(theirs.to(device), ours.to(device), masks, device)


@kernel
@each_layer
def test_what_is_folded(
    kind: str, norm_first: bool, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Every end that a norm of the layer's own follows, with its own dropout's rate."""
    _, ours = pair(kind, norm_first, batch_first=True) if kind != VIT else pair(kind, norm_first)
    ours.to(device)
    for name, module in ours.named_modules():
        if isinstance(module, nn.Dropout) and "mlp" not in name:
            module.p = 0.1 * int(name[-1:]) if name[-1:].isdigit() else 0.4
    calls = count_folds(monkeypatch)
    call(ours, *inputs(device))
    expected = [0.4] if kind == VIT else [0.1, 0.2, 0.1 * 3][: FOLDED[kind, norm_first]]
    assert [options["p"] for options in calls] == expected


@each_layer
def test_float64_is_torchs_to_the_last_bit(kind: str, norm_first: bool, device: str) -> None:
    theirs, ours = (m.to(device).double() for m in pair(kind, norm_first, 0.3))
    x = [t.double() for t in inputs(device)]
    assert_all_equal(gradients(ours, *x), gradients(theirs, *x))


@each_layer
def test_state_copies_and_names_are_torchs(kind: str, norm_first: bool, device: str) -> None:
    theirs, ours = (m.to(device) for m in pair(kind, norm_first, 0.3))
    assert isinstance(ours, type(theirs))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    x = inputs(device)
    expected = gradients(ours, *x)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for each in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(each) is type(ours)
        assert_all_equal(gradients(each, *x), expected)


@kernel
@each_layer
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_replays_the_masks(
    kind: str, norm_first: bool, reentrant: bool, device: str
) -> None:
    _, ours = pair(kind, norm_first, 0.4)
    ours.to(device)
    x = inputs(device)
    expected = gradients(ours, *x)
    torch.manual_seed(7)
    leaves = [t.detach().clone().requires_grad_() for t in x]
    y = checkpoint(call, ours, *leaves, use_reentrant=reentrant)
    y.square().sum().backward()
    found = [
        torch.zeros_like(t) if t.grad is None else t.grad for t in [*leaves, *ours.parameters()]
    ]
    assert_all_equal([y, *found], expected)
    assert not torch.equal(gradients(ours, *x, seed=8)[1], expected[1])  # masks there are


@kernel
@pytest.mark.parametrize("kind", [ENCODER, DECODER])
def test_each_end_has_its_own_dropout(kind: str, device: str) -> None:
    """Of an end that drops all of its branch is left the norm of the stream."""
    _, ours = pair(kind, norm_first=False, batch_first=True)
    ours.to(device)
    x, memory = inputs(device)
    for name, child in ours.named_children():
        if isinstance(child, nn.Dropout) and name != "dropout":
            child.p = 1.0
    norms = [norm for norm in ours.children() if isinstance(norm, nn.LayerNorm)]
    torch.testing.assert_close(call(ours, x, memory), nn.Sequential(*norms)(x))
    ours.dropout1.p = 0.0
    attended = x + ours.self_attn(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(call(ours, x, memory), nn.Sequential(*norms)(attended))


@kernel
def test_the_law_of_the_mask(device: str) -> None:
    layer = TransformerEncoderLayer(16, 2, 8, 0.0, norm_first=True, batch_first=True).to(device)
    nn.init.zeros_(layer.linear2.weight)
    nn.init.zeros_(layer.linear2.bias)
    nn.init.zeros_(layer.self_attn.out_proj.weight)
    nn.init.ones_(layer.self_attn.out_proj.bias)
    layer.dropout1.p = 0.25
    x = torch.zeros(8, 50, 16, device=device)
    z = layer(x)
    kept = z > 0
    torch.testing.assert_close(z, kept / 0.75)
    assert kept.double().mean().item() == pytest.approx(0.75, abs=5 * (0.1875 / x.numel()) ** 0.5)
    layer.dropout1.eval()  # whatever the layer's mode
    assert torch.equal(layer(x), torch.ones_like(x))


@each_layer
def test_where_the_kernels_do_not_run(kind: str, norm_first: bool, device: str) -> None:
    """Forward-mode derivatives; and inputs without a batch, which the ViT's block refuses."""
    theirs, ours = (m.to(device) for m in pair(kind, norm_first))
    x, memory = inputs(device)
    tangents = torch.randn_like(x), torch.zeros_like(memory)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        a, b = (jvp(partial(call, m), (x, memory), tangents) for m in (ours, theirs))
    assert_all_equal([*a], [*b])
    if kind == VIT:
        for layer in (ours, theirs):
            with pytest.raises(AssertionError, match="Expected"):
                layer(x[0])
        return
    single = [(m(x[0], memory[0]) if kind == DECODER else m(x[0])) for m in (ours, theirs)]
    torch.testing.assert_close(*single, rtol=1e-5, atol=1e-5)
