"""When the ends of a transformer layer's branches are folded, and when its modules are called."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from typing_extensions import override

import lightning_kernels
from lightning_practices.ensembles import monte_carlo_dropout
from lightning_practices.nn import (
    Dropout,
    LayerNorm,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)
from lightning_practices.schedules import DropRate
from lightning_practices.surgery import fuse
from tests.nn.transformer_layers import (
    DECODER,
    ENCODER,
    FOLDED,
    VIT,
    WIDTH,
    call,
    count_folds,
    each_layer,
    gradients,
    inputs,
    pair,
)

kernel = pytest.mark.kernel
Touch = Callable[[nn.Module], object]


class Half(nn.Dropout):
    """A user's, that halves."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        return input / 2


def halved(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output / 2


def patch(module: Any) -> None:
    forward = module.forward
    module.forward = lambda input: forward(input) / 2


TOUCHES: dict[str, Touch] = {
    "forward hook": lambda m: m.register_forward_hook(halved),
    "pre-hook": lambda m: m.register_forward_pre_hook(lambda _, args: (args[0] / 2,)),
    "backward hook": lambda m: m.register_full_backward_hook(lambda *_: None),
    "backward pre-hook": lambda m: m.register_full_backward_pre_hook(lambda *_: None),
    "its own forward": patch,
}


def ends(layer: nn.Module, kind: str) -> tuple[Any, Any]:
    """Return the dropout and the norm of the first end that is folded."""
    if kind == VIT:
        return layer.dropout, layer.ln_2
    return layer.dropout1, layer.norm2 if layer.norm_first else layer.norm1


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Float32 against float64: of sums over tens of numbers of about 1, none is off by 1e-4."""
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@kernel
@pytest.mark.parametrize("touch", TOUCHES)
@pytest.mark.parametrize("which", ["dropout", "norm"])
@pytest.mark.parametrize(("kind", "norm_first"), [(ENCODER, False), (VIT, True)])
def test_what_is_touched_is_called(
    kind: str, norm_first: bool, which: str, touch: str, monkeypatch: pytest.MonkeyPatch,
    device: str,
) -> None:  # fmt: skip
    theirs, ours = (m.to(device) for m in pair(kind, norm_first))
    x = inputs(device)
    calls = count_folds(monkeypatch)
    for layer in (theirs, ours):
        TOUCHES[touch](ends(layer, kind)[which == "norm"])
    actual = gradients(ours, *x)
    assert len(calls) == FOLDED[kind, norm_first] - 1
    assert_close(actual, gradients(theirs.double(), *(t.double() for t in x)))


@kernel
@pytest.mark.parametrize("replaced", [Half(0.5), nn.Identity(), nn.AlphaDropout(0.0)])
def test_another_dropout_is_called(
    replaced: nn.Module, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    theirs, ours = (m.to(device) for m in pair(ENCODER, norm_first=True))
    x = inputs(device)
    calls = count_folds(monkeypatch)
    theirs.dropout1 = ours.dropout1 = replaced
    actual = gradients(ours, *x)
    assert not calls
    assert_close(actual, gradients(theirs.double(), *(t.double() for t in x)))


@kernel
def test_another_norm_is_called(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    class Doubled(nn.LayerNorm):
        @override
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    theirs, ours = (m.to(device) for m in pair(VIT, norm_first=True))
    x = inputs(device)
    calls = count_folds(monkeypatch)
    theirs.ln_2 = ours.ln_2 = Doubled(WIDTH).to(device)
    actual = gradients(ours, *x)
    assert not calls
    theirs.double()
    assert_close(actual, gradients(theirs, *(t.double() for t in x)))


@kernel
def test_a_norm_that_matches_autocast_is_called(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    _, ours = (m.to(device) for m in pair(ENCODER, norm_first=True))
    fuse(ours)
    calls = count_folds(monkeypatch)
    gradients(ours, *inputs(device))
    assert len(calls) == 1
    ours.norm2.autocast = "match"
    gradients(ours, *inputs(device))
    assert len(calls) == 1


@kernel
@each_layer
def test_this_packages_children_are_folded_too(
    kind: str, norm_first: bool, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    _, ours = (m.to(device) for m in pair(kind, norm_first))
    x = inputs(device)
    expected = gradients(ours, *x)
    fuse(ours)
    dropout, norm = ends(ours, kind)
    assert (type(dropout), type(norm)) == (Dropout, LayerNorm)
    calls = count_folds(monkeypatch)
    actual = gradients(ours, *x)
    assert len(calls) == FOLDED[kind, norm_first]
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@kernel
@each_layer
def test_a_hook_on_all_modules_sees_all(kind: str, norm_first: bool, device: str) -> None:
    theirs, ours = (m.to(device) for m in pair(kind, norm_first))
    seen: list[list[str]] = []
    for layer in (theirs, ours):
        names = {module: name for name, module in layer.named_modules()}
        found: list[str] = []
        handle = register_module_forward_hook(
            lambda module, *_, names=names, found=found: found.append(names[module])
        )
        try:
            call(layer, *inputs(device))
        finally:
            handle.remove()
        seen.append(found)
    assert seen[0] == seen[1]


class OwnAttention(TransformerEncoderLayer):
    @override
    def _sa_block(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return x / 2


class OwnFeedForward(TransformerEncoderLayer):
    @override
    def _ff_block(self, x: Tensor) -> Tensor:
        return x / 2


class OwnCross(TransformerDecoderLayer):
    @override
    def _mha_block(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return x / 2


@pytest.mark.parametrize("cls", [OwnAttention, OwnFeedForward, OwnCross])
@pytest.mark.parametrize("where", ["class", "instance"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_a_users_own_branch_is_run(cls: Any, where: str, norm_first: bool, device: str) -> None:
    twin = cls.__base__
    (name,) = (name for name in vars(cls) if name.endswith("_block"))
    layer = (cls if where == "class" else twin)(WIDTH, 2, 16, 0.5, norm_first=norm_first).to(device)
    if where == "instance":
        setattr(layer, name, lambda x, *args, **options: x / 2)
    x = inputs(device)[:1] * (2 if cls is OwnCross else 1)
    torch.manual_seed(5)
    expected = super(twin, layer).forward(*x)
    torch.manual_seed(5)
    assert torch.equal(layer(*x), expected)


@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_kernel_for_a_whole_layer_is_taken_in_evaluation(
    norm_first: bool, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    theirs, ours = pair(ENCODER, norm_first, 0.5, batch_first=True)
    theirs.to(device).eval()
    ours.to(device).eval()
    x, _ = inputs(device)
    with torch.no_grad():
        expected = theirs(x)
        monkeypatch.setattr(TransformerEncoderLayer, "__call__", TransformerEncoderLayer.forward)
        assert torch.equal(ours(x), expected)
    for parameter in ours.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(ours(x), expected)  # frozen: with gradients enabled too


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")  # torch's own
def test_nested_tensors_go_through_an_accelerated_encoder(device: str) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).to(device).eval()
    x, _ = inputs(device)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 5], device=device)
    nested: list[bool] = []
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=padding)
        fuse(model)
        model.layers[1].register_forward_pre_hook(lambda _, args: nested.append(args[0].is_nested))
        assert torch.equal(model(x, src_key_padding_mask=padding), expected)
    assert nested == [True]


@contextmanager
def as_under_a_gpus_autocast() -> Iterator[None]:
    """Let torch's layers take it that a GPU's autocast is on."""
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


@kernel
@each_layer
def test_evaluation_under_autocast_is_folded(
    kind: str, norm_first: bool, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    _, ours = pair(kind, norm_first, 0.5)
    ours.to(device).eval()
    calls = count_folds(monkeypatch)
    with as_under_a_gpus_autocast(), torch.no_grad():
        call(ours, *inputs(device))
    assert len(calls) == FOLDED[kind, norm_first]
    assert not any(options["training"] for options in calls)


@kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_layer
def test_autocast_leaves_the_stream_in_its_type(
    kind: str, norm_first: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """The error, against float64, is no more than 1.5 times that of torch's layer."""
    theirs, ours = (m.to(device) for m in pair(kind, norm_first))
    x = inputs(device)
    calls = count_folds(monkeypatch)
    with torch.autocast(device, dtype):
        results = [gradients(layer, *x) for layer in (ours, theirs)]
    assert len(calls) == FOLDED[kind, norm_first]
    assert results[0][0].dtype == results[1][0].dtype == torch.float32
    exact = gradients(theirs.double(), *(t.double() for t in x))
    mine, torchs, right = (torch.cat([t.double().flatten() for t in r]) for r in (*results, exact))
    assert (mine - right).norm() <= 1.5 * (torchs - right).norm()


@kernel
@pytest.mark.parametrize(
    ("kind", "norm_first"), [(ENCODER, True), (ENCODER, False), (DECODER, False), (VIT, True)]
)
def test_compiles_into_one_graph(kind: str, norm_first: bool, device: str) -> None:
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(sum("add_norm" in str(node.target) for node in graph.graph.nodes))
        return graph

    _, ours = pair(kind, norm_first, **({} if kind == VIT else {"batch_first": True}))
    fuse(ours.to(device))
    x = inputs(device)
    expected = gradients(ours, *x)
    torch.compiler.reset()
    ours.compile(backend=backend, fullgraph=True)
    for a, b in zip(gradients(ours, *x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert graphs == [FOLDED[kind, norm_first]]
    torch.compiler.reset()


def test_rates_are_scheduled(device: str) -> None:
    for kind, norm_first in FOLDED:
        _, ours = pair(kind, norm_first, 0.5)
        for module in ours.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0  # a number of its own, which no schedule finds
        fuse(ours.to(device))
        x = inputs(device)
        schedule = DropRate(ours, "linear")
        schedule.apply(0.0)
        assert torch.equal(call(ours, *x), call(ours, *x))
        schedule.restore()
        assert not torch.equal(call(ours, *x), call(ours, *x))


def test_monte_carlo_dropout_drops_in_evaluation(device: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = pair(ENCODER, norm_first=True, p=0.5, batch_first=True)[1]

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y

    model = Model().to(device)
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and not name.endswith("dropout1"):
            module.p = 0.0
    model.layer.self_attn.dropout = 0.0
    prediction = monte_carlo_dropout(model, inputs(device)[0], task="regression")
    assert (prediction.std > 0).all()


def test_the_route_decides(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Where the kernels do not run, nothing of this package's comes between."""
    theirs, ours = (m.to(device) for m in pair(ENCODER, norm_first=False, p=0.2))
    x = inputs(device)
    monkeypatch.setattr(lightning_kernels, "route", lambda x: "aten")
    calls = count_folds(monkeypatch)
    for a, b in zip(gradients(ours, *x), gradients(theirs, *x), strict=True):
        assert torch.equal(a, b)
    assert not calls


@kernel
def test_a_scheduled_rate_is_read_on_the_device(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """So that a compiled layer is not compiled again, nor a captured graph stale."""
    _, ours = pair(ENCODER, norm_first=False, p=0.5)
    fuse(ours.to(device))
    for dropout in (ours.dropout1, ours.dropout2):
        dropout.schedule_rate(device)
    calls = count_folds(monkeypatch)
    call(ours, *inputs(device))
    assert [options["p"] is rate for options, rate in zip(
        calls, (ours.dropout1.rate, ours.dropout2.rate), strict=True
    )] == [True, True]  # fmt: skip


@pytest.mark.parametrize("kind", [ENCODER, DECODER])
def test_attention_is_told_that_its_mask_is_causal(kind: str, device: str) -> None:
    """By a hint that changes which kernel is run, and not what it computes."""
    for layer in pair(kind, norm_first=True):
        hints: list[bool] = []
        layer.to(device).self_attn.register_forward_pre_hook(
            lambda _, args, options, hints=hints: hints.append(options["is_causal"]),
            with_kwargs=True,
        )
        for masks in ("causal", "float"):
            call(layer, *inputs(device), masks=masks)
        assert hints == [True, False]
