import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ConvNeXt, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from typing_extensions import override

from lightning_practices.nn import (
    Dropout,
    EncoderBlock,
    LayerNorm,
    LayerNorm2d,
    StochasticDepth,
    TransformerEncoderLayer,
)
from lightning_practices.surgery import Replaced, Report, fuse, unfuse
from tests.surgery.models import Tuned, assert_equal, encoder, mlp, randomise, sequence, step


class OwnForward(nn.Dropout):
    @override
    def forward(self, input: Tensor) -> Tensor:
        return input + 1


class OwnCall(nn.Dropout):
    @override
    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args)


class Registered(nn.LayerNorm):
    subclasses = 0

    def __init_subclass__(cls) -> None:
        Registered.subclasses += 1


class Meta(type):
    pass


class WithMeta(nn.Dropout, metaclass=Meta):
    pass


def mlp_input() -> Tensor:
    return torch.randn(4, 8)


def vit() -> Any:
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64,
        dropout=0.1, num_classes=5,
    )  # fmt: skip


def convnext() -> Any:
    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=5)


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32)


TWINS = (Dropout, EncoderBlock, LayerNorm, LayerNorm2d, StochasticDepth, TransformerEncoderLayer)
MODELS = [(mlp, mlp_input), (vit, images), (convnext, images), (encoder, sequence)]


def classes(model: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


def through_pickle(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("build", "data"), MODELS)
def test_models_compute_the_same_there_and_back(
    build: Callable[[], nn.Module], data: Callable[[], Tensor], training: bool, device: str
) -> None:
    model = build().to(device, torch.float64).train(training)  # which every route does exactly
    x = data().to(device, torch.float64)
    before, text, kinds = step(model, x), repr(model), classes(model)
    report = fuse(model)
    assert report.replaced
    for replaced in report.replaced:
        forward = type(model.get_submodule(replaced.names[0])).forward
        assert forward in {twin.forward for twin in TWINS}
    assert repr(model) == text
    assert_equal(step(model, x), before)
    undone = unfuse(model)
    assert [r.names for r in undone.replaced] == [r.names for r in report.replaced]
    assert classes(model) == kinds
    assert repr(model) == text
    assert_equal(step(model, x), before)


@pytest.mark.parametrize(("build", "data"), MODELS)
def test_float32_is_as_near_to_float64_as_torchs(
    build: Callable[[], nn.Module], data: Callable[[], Tensor], device: str
) -> None:
    model = build().to(device).eval()
    x = data().to(device)
    exact = step(copy.deepcopy(model).double(), x.double())
    theirs = step(model, x)
    fuse(model)
    # All results together: some gradients are sums that cancel, and any one of those is noise.
    ours, torchs, truth = (
        torch.cat([tensor.double().flatten() for tensor in tensors])
        for tensors in (step(model, x), theirs, exact)
    )
    rounding = torch.finfo(x.dtype).eps * truth.norm()
    assert (ours - truth).norm() <= 1.5 * (torchs - truth).norm() + rounding


def test_only_the_class_changes() -> None:
    model: Any = mlp().eval()
    model[1].weight.requires_grad_(False)
    model[1].train()
    outside, seen = model[1], []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model[2].register_forward_hook(lambda module, args, y: seen.append(type(module)))
    tensors = {name: (id(t), t.data_ptr()) for name, t in model.state_dict(keep_vars=True).items()}
    report = fuse(model)
    assert report == Report(
        [
            Replaced(("1",), "torch.nn.LayerNorm", "lightning_practices.nn.LayerNorm"),
            Replaced(("2",), "torch.nn.Dropout", "lightning_practices.nn.Dropout"),
        ]
    )
    assert model[1] is outside
    assert type(outside) is LayerNorm
    model(torch.randn(4, 8)).sum().backward()
    assert seen == [Dropout]
    after = {name: (id(t), t.data_ptr()) for name, t in model.state_dict(keep_vars=True).items()}
    assert after == tensors
    assert [m.training for m in model] == [False, True, False, False]
    assert not model[1].weight.requires_grad
    bias = model[1].bias.detach().clone()
    optimizer.step()
    assert not torch.equal(model[1].bias, bias)


@pytest.mark.parametrize("layer", [nn.LayerNorm(8), nn.Dropout(0.1)])
def test_the_model_itself_is_swapped(layer: nn.Module) -> None:
    kind = type(layer)
    report = fuse(layer)
    assert report.replaced[0].names == ("",)
    assert type(layer) in (LayerNorm, Dropout)
    assert "(the model itself)" in str(report)
    unfuse(layer)
    assert type(layer) is kind


def test_accelerating_or_restoring_twice_changes_nothing() -> None:
    model = mlp()
    fuse(model)
    kinds = classes(model)
    assert fuse(model) == Report()
    assert classes(model) == kinds
    unfuse(model)
    kinds = classes(model)
    assert unfuse(model) == Report()
    assert classes(model) == kinds


@pytest.mark.parametrize("strict_order", [1, -1])
def test_checkpoints_go_both_ways(strict_order: int) -> None:
    plain, fused = vit(), vit()
    fuse(fused)
    source, target = (plain, fused)[::strict_order]
    target.load_state_dict(source.state_dict(), strict=True)
    assert list(source.state_dict()) == list(target.state_dict())
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name])


def test_shared_layers_are_swapped_once_and_named_fully() -> None:
    shared = nn.LayerNorm(8)
    block = nn.Sequential(shared, nn.Dropout(0.1))
    model: Any = nn.ModuleDict({"a": block, "b": block, "c": shared})
    report = fuse(model)
    assert [r.names for r in report.replaced] == [("a.0", "b.0", "c"), ("a.1", "b.1")]
    assert model["c"] is model["a"][0] is shared
    assert type(shared) is LayerNorm
    assert [r.names for r in unfuse(model).replaced] == [("a.0", "b.0", "c"), ("a.1", "b.1")]
    assert type(shared) is nn.LayerNorm


def test_layers_with_their_own_way_are_skipped_and_say_why() -> None:
    patched = nn.Dropout(0.5)
    patched.forward = lambda input: input  # type: ignore[method-assign]
    model = nn.ModuleDict(
        {
            "own": OwnForward(),
            "own_call": OwnCall(),
            "patched": patched,
            "registered": Registered(8),
            "meta": WithMeta(),
            "fine": nn.Dropout(),
        }
    )
    kinds = classes(model)
    report = fuse(model)
    reasons = {left.names[0]: left.reason for left in report.skipped}
    assert reasons.pop("patched") == "this instance has its own forward"
    assert reasons.pop("meta").endswith("WithMeta has the metaclass Meta")
    assert [reason.rpartition(".")[2] for reason in reasons.values()] == [
        "OwnForward overrides forward",
        "OwnCall overrides __call__",
        "Registered overrides __init_subclass__",
    ]
    assert [r.names for r in report.replaced] == [("fine",)]
    assert classes(model) == {**kinds, "fine": Dropout}
    assert Registered.subclasses == 0
    assert unfuse(model).skipped == []


def test_plain_subclass_is_fused_and_stays_itself(device: str) -> None:
    model = nn.Sequential(Tuned(8)).to(device, torch.float64)
    randomise(model)
    x = torch.randn(4, 8, dtype=torch.float64, device=device)
    expected, text = model(x), repr(model)
    (replaced,) = fuse(model).replaced
    assert (replaced.before, replaced.after) == (
        f"{Tuned.__module__}.Tuned",
        "lightning_practices.nn.LayerNorm",
    )
    layer: Any = model[0]
    assert isinstance(layer, Tuned)
    assert isinstance(layer, LayerNorm)
    assert type(layer).forward is LayerNorm.forward
    assert repr(model) == text
    assert torch.equal(model(x), expected)
    assert torch.equal(layer.gain(), layer.weight.abs().mean())
    assert fuse(model) == Report()
    unfuse(model)
    assert type(layer) is Tuned


@pytest.mark.parametrize("build", [lambda: nn.LayerNorm(8), lambda: Tuned(8)])
@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, through_pickle, lambda m: pickle.loads(pickle.dumps(m, protocol=0))],
)
def test_copies_are_fused_and_can_be_restored(
    copied: Callable[[nn.Module], nn.Module], build: Callable[[], nn.Module]
) -> None:
    layer, x = build(), torch.randn(4, 8)
    kind = type(layer)
    fuse(layer)
    twin = copied(layer)
    assert type(twin) is type(layer)
    assert type(twin).forward is LayerNorm.forward
    assert torch.equal(twin(x), layer(x))
    assert [r.names for r in unfuse(twin).replaced] == [("",)]
    assert type(twin) is kind
    assert isinstance(layer, LayerNorm)
    assert vars(twin).keys() == vars(build()).keys()


def test_restore_leaves_layers_that_were_built_fused() -> None:
    own = LayerNorm(8)
    model = nn.Sequential(own, nn.LayerNorm(8))
    assert [r.names for r in fuse(model).replaced] == [("1",)]
    assert [r.names for r in unfuse(model).replaced] == [("1",)]
    assert [type(m) for m in model] == [LayerNorm, nn.LayerNorm]


def test_restore_skips_what_was_changed_since() -> None:
    model = mlp()
    fuse(model)
    model[2].__class__ = OwnForward
    report = unfuse(model)
    assert [r.names for r in report.replaced] == [("1",)]
    assert [s.names for s in report.skipped] == [("2",)]
    assert "changed after it was fused" in report.skipped[0].reason
    assert type(model[2]) is OwnForward


def test_nothing_is_swapped_if_anything_raises() -> None:
    class Hostile(nn.Dropout):
        @property
        def parametrizations(self) -> None:
            raise RuntimeError("boom")

    model = nn.Sequential(nn.LayerNorm(8), nn.Dropout(), Hostile(), nn.LayerNorm(8))
    kinds = classes(model)
    with pytest.raises(RuntimeError, match="boom"):
        fuse(model)
    assert classes(model) == kinds
    assert vars(model[0]).keys() == vars(nn.LayerNorm(8)).keys()


@pytest.mark.parametrize("act", [fuse, unfuse])
@pytest.mark.parametrize("bad", [None, nn.LayerNorm, [nn.LayerNorm(8)]])
def test_anything_but_a_module_is_refused(act: Callable[[Any], Report], bad: object) -> None:
    with pytest.raises(
        TypeError, match=r"model has to be a torch.nn.Module, but got .*(None|Norm)"
    ):
        act(bad)
