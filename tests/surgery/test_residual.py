"""Whole transformers, swapped for layers with folded ends and back."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torchvision.models import VisionTransformer, vision_transformer
from typing_extensions import override

import lightning_kernels
from lightning_practices.nn import (
    EncoderBlock,
    LayerNorm,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)
from lightning_practices.nn.blocks import drop_add_norm
from lightning_practices.surgery import Folded, Replaced, Report, fuse, unfuse
from tests import processes
from tests.nn.transformer_layers import count_folds
from tests.surgery.models import assert_equal, near, step

WIDTH = 8
LAYERS = (TransformerEncoderLayer, TransformerDecoderLayer, EncoderBlock)
kernel = pytest.mark.kernel


class Whole(nn.Transformer):
    """Encoder and decoder of one sequence."""

    @override
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        mask = self.generate_square_subsequent_mask(x.shape[1], x.device, x.dtype)
        y: Tensor = super().forward(x, x.flip(1), tgt_mask=mask, tgt_is_causal=True)
        return y


def transformer(p: float = 0.0, *, norm_first: bool = False) -> Any:
    return Whole(WIDTH, 2, 2, 2, 16, p, batch_first=True, norm_first=norm_first)


def vit(p: float = 0.0, **options: Any) -> Any:
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64,
        dropout=p, num_classes=5, **options,
    )  # fmt: skip


def sequences(device: str = "cpu") -> Tensor:
    return torch.randn(3, 5, WIDTH, device=device)


def images(device: str = "cpu") -> Tensor:
    return torch.randn(2, 3, 32, 32, device=device)


def pre_norm(p: float = 0.0) -> Any:
    return transformer(p, norm_first=True)


# torch's own warning: nested tensors are not for pre-norm
WARNING = "ignore:enable_nested_tensor is True:UserWarning"
each_model = pytest.mark.parametrize(
    ("build", "data", "folds"),
    [(transformer, sequences, 10), (pre_norm, sequences, 6), (vit, images, 3)],
)
Build = Callable[..., Any]


@pytest.mark.filterwarnings(WARNING)
@each_model
def test_float64_is_the_same_to_the_last_bit_there_and_back(
    build: Build, data: Callable[[str], Tensor], folds: int, device: str
) -> None:
    model = build(0.1).to(device).double()
    x = data(device).double()
    kinds = {name: type(module) for name, module in model.named_modules()}
    for training in (True, False):
        model.train(training)
        before = step(model, x)
        fuse(model)
        assert_equal(step(model, x), before)
        unfuse(model)
        assert {name: type(module) for name, module in model.named_modules()} == kinds
        assert not any("_fused_from" in vars(module) for module in model.modules())
        assert_equal(step(model, x), before)


@kernel
@pytest.mark.filterwarnings(WARNING)
@each_model
def test_training_is_as_right_as_before(
    build: Build, data: Callable[[str], Tensor], folds: int, monkeypatch: pytest.MonkeyPatch,
    device: str,
) -> None:  # fmt: skip
    plain = build().to(device)
    model = copy.deepcopy(plain)
    fuse(model)
    x = data(device)
    calls = count_folds(monkeypatch)
    model(x)
    assert len(calls) == folds
    near(model, plain, x)


def test_what_the_report_says() -> None:
    model = nn.ModuleDict(
        {
            "encoder": nn.TransformerEncoderLayer(WIDTH, 2, 16),
            "decoder": nn.TransformerDecoderLayer(WIDTH, 2, 16),
            "vit": vision_transformer.EncoderBlock(2, WIDTH, 16, 0.1, 0.1),
        }
    )
    report = fuse(model)
    torchs, ours = "torch.nn.Transformer", "lightning_practices.nn."
    assert [replaced for replaced in report.replaced if "." not in replaced.names[0]] == [
        Replaced(("encoder",), f"{torchs}EncoderLayer", f"{ours}TransformerEncoderLayer"),
        Replaced(("decoder",), f"{torchs}DecoderLayer", f"{ours}TransformerDecoderLayer"),
    ]
    block = "torchvision.models.vision_transformer.EncoderBlock"
    norm = "torch.nn.LayerNorm"
    assert report.folded == [Folded(("vit.ln_2",), norm, block, "Dropout + add + LayerNorm")]
    assert [type(child) for child in model.children()] == [*LAYERS]
    assert fuse(model) == Report()


class Plain(nn.TransformerEncoderLayer):
    """A subclass that only changes defaults, as many models have."""

    def __init__(self) -> None:
        super().__init__(WIDTH, 2, 16, 0.0, batch_first=True)


class OwnForward(vision_transformer.EncoderBlock):  # type: ignore[misc]  # untyped
    @override
    def forward(self, input: Tensor) -> Tensor:
        return input / 2


def test_subclasses(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    model = nn.Sequential(Plain(), OwnForward(2, WIDTH, 16, 0.1, 0.1)).to(device)
    x = sequences(device)
    before, kinds = step(model[0], x), [type(child) for child in model]
    report = fuse(model)
    assert [left.names for left in report.skipped] == [("1",)]
    assert report.skipped[0].reason == "not folded: OwnForward overrides forward"
    assert isinstance(model[0], Plain)
    assert type(model[0]).forward is TransformerEncoderLayer.forward
    assert type(model[1]) is OwnForward
    calls = count_folds(monkeypatch)
    after = step(model[0], x)
    assert len(calls) == (2 if lightning_kernels.route(x) != "aten" else 0)
    for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_equal(step(each[0], x), after)
        unfuse(each)
        assert [type(child) for child in each] == kinds
        assert_equal(step(each[0], x), before)


@kernel
@pytest.mark.parametrize("norm_first", [True, False])
def test_second_derivatives(norm_first: bool, device: str) -> None:
    """The gradient of a gradient's size, as a penalty on it asks for."""
    plain = nn.TransformerEncoderLayer(
        WIDTH, 2, 16, 0.0, norm_first=norm_first, activation=torch.tanh
    ).to(device)
    model = copy.deepcopy(plain)
    fuse(model)

    def of(layer: nn.Module, x: Tensor) -> list[Tensor]:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            y = layer(x.requires_grad_())
            (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
            parameters = list(layer.parameters())
            return [*torch.autograd.grad(first.square().sum(), parameters, materialize_grads=True)]

    x = sequences(device)
    exact = of(plain.double(), x.double())
    for mine, right in zip(of(model, x), exact, strict=True):
        assert (mine.double() - right).norm() <= 1e-4 * max(1.0, right.norm().item())


def sharded_step(shards_norms: bool, norm_first: bool) -> list[Tensor]:
    """Return the output and the whole gradients of an fused, sharded encoder."""
    model: Any = encoder(norm_first)
    fuse(model)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.layers:
        if shards_norms:
            fully_shard(layer.norm2, mesh=mesh)
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    y = model(sequences_of_seed())
    y.square().sum().backward()
    grads = [p.grad for p in model.parameters()]
    return [y.detach(), *(g.full_tensor() for g in grads if isinstance(g, DTensor))]


def encoder(norm_first: bool) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.0, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def sequences_of_seed() -> Tensor:
    return torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("shards_norms", [True, False])
def test_under_fsdp2(shards_norms: bool, norm_first: bool) -> None:
    """Also where a norm has its parameters only while it is called."""
    expected = step(encoder(norm_first), sequences_of_seed())
    for results in processes.run(sharded_step, [(shards_norms, norm_first)] * 2):
        for mine, right in zip(results, expected, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)


@pytest.mark.kernel
def test_a_branch_of_16_bits_is_one_call_under_autocast_alone(device: str) -> None:
    """Without autocast nobody casts the input of the next layer."""
    branch = torch.randn(4, 8, device=device, dtype=torch.bfloat16)
    stream, norm = torch.randn(4, 8, device=device), LayerNorm(8, device=device)
    y, z = drop_add_norm(branch, stream, None, norm)
    assert (y.dtype, z.dtype) == (torch.float32, torch.float32)
    assert torch.equal(y, norm(stream + branch))
    with torch.autocast(device, torch.bfloat16):
        y, z = drop_add_norm(branch, stream, None, norm)
    assert (y.dtype, z.dtype) == (torch.bfloat16, torch.float32)
