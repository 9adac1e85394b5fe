"""What each kind of layer drops in Monte Carlo dropout: one mask for all samples of a pass."""

import copy
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import ops
from typing_extensions import override

from lightning_practices import nn as fused
from lightning_practices.ensembles import MonteCarloPrediction, monte_carlo_dropout


def drop_cluster() -> nn.Module:
    layer = fused.DropCluster2d(0.3, 3)
    return layer.fit(torch.randn(20, 2, 4, 4, generator=torch.Generator().manual_seed(0)))


KINDS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.Dropout(0.3), (5,)),
    (lambda: nn.Dropout(0.3, inplace=True), (5,)),
    (lambda: nn.Dropout(1.0), (5,)),
    (lambda: fused.Dropout(0.3), (5,)),
    (lambda: nn.Dropout1d(0.3), (3, 2)),
    (lambda: nn.Dropout2d(0.3), (3, 2, 2)),
    (lambda: nn.Dropout3d(0.3), (2, 2, 1, 2)),
    (lambda: nn.AlphaDropout(0.3), (5,)),
    (lambda: nn.FeatureAlphaDropout(0.3), (3, 2)),
    (lambda: ops.StochasticDepth(0.3, "row"), (5,)),
    (lambda: ops.StochasticDepth(0.3, "batch"), (5,)),
    (lambda: fused.DropConnectLinear(5, 3, p=0.3, dtype=torch.float64), (5,)),
    (lambda: fused.DropConnectLinear(5, 3, p=0.3, per_sample=True, dtype=torch.float64), (5,)),
    (drop_cluster, (2, 4, 4)),
    (lambda: ops.DropBlock2d(0.3, 3), (2, 4, 4)),
    (lambda: ops.DropBlock3d(0.3, 3, inplace=True), (2, 3, 4, 3)),
]
try:
    timm: Any = importlib.import_module("timm.layers")
except ModuleNotFoundError:  # these tests run without it
    pass
else:
    KINDS += [
        (lambda: timm.DropPath(0.3), (5,)),
        (lambda: timm.DropBlock2d(0.3, 3), (2, 4, 4)),
        (lambda: timm.DropBlock2d(0.3, 3, with_noise=True), (2, 4, 4)),
    ]


def name_of(value: Any) -> str:
    return str(value()) if callable(value) else ""


def predict(model: nn.Module, x: Tensor, passes: int = 8, **options: Any) -> MonteCarloPrediction:
    return monte_carlo_dropout(model, x, task="regression", passes=passes, **options)


def assert_alike(got: Tensor, independent: Tensor, passes: int) -> None:
    """Mean and std of ``got``'s passes are those of the samples in dimension 0, but for chance.

    Both estimates have a standard error, to first order by the central limit theorem.
    """
    draws = len(independent)
    mean, std = independent.mean(0), independent.std(0)
    both = (1 / passes + 1 / draws) ** 0.5
    assert ((got[0] - mean).abs() <= 5 * std * both + 1e-12).all()
    fourth = (independent - mean).pow(4).mean(0)
    spread = ((fourth - std**4).clamp_min(0)).sqrt() * both  # of a variance
    assert ((got[1] ** 2 - std**2).abs() <= 5 * spread + 25 * both**2 * std**2 + 1e-12).all()


def assert_same(layer: nn.Module, got: Tensor, expected: Tensor) -> None:
    """Bitwise, unless a product is batched differently."""
    rounding = 1e-12 if isinstance(layer, nn.Linear) else 0.0
    torch.testing.assert_close(got, expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize(("build", "shape"), KINDS, ids=name_of)
def test_masks_are_those_of_the_layer_and_shared_by_all_samples(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    layer, sample = build(), torch.randn(shape, dtype=torch.float64)
    passes, draws = 500, 1000
    got = predict(layer, sample.expand(4, *shape).clone(), passes, max_batch_size=400)
    assert_same(layer, got.mean, got.mean[:1].expand_as(got.mean))
    assert_same(layer, got.std, got.std[:1].expand_as(got.std))
    layer.train()
    # One by one: some kinds draw or rescale once for all that they see together.
    independent = torch.cat([layer(sample[None].clone()) for _ in range(draws)])
    assert_alike(torch.stack([got.mean[0], got.std[0]]), independent, passes)


@pytest.mark.parametrize(("build", "shape"), KINDS, ids=name_of)
def test_a_sample_drops_the_same_in_any_batch(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    layer, x = build(), torch.randn(6, *shape, dtype=torch.float64)
    kept, text = x.clone(), repr(layer)
    whole = predict(layer, x)
    order = torch.randperm(6)
    for rows, limit in ((order, None), (slice(2, 3), None), (slice(1, 5), 12), (order, 100)):
        part = predict(layer, x[rows], max_batch_size=limit)
        assert_same(layer, part.mean, whole.mean[rows])
        assert_same(layer, part.std, whole.std[rows])
    assert torch.equal(x, kept)
    assert repr(layer) == text


def test_the_masks_of_calls_layers_passes_and_seeds_differ() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Dropout(0.5), nn.Dropout(0.5)
            self.seen: list[Tensor] = []

        @override
        def forward(self, x: Tensor) -> Tensor:
            y = torch.stack([self.first(x), self.second(x), self.first(input=x)], dim=1)
            self.seen.append(y)
            return y

    model = Several()
    predict(model, torch.ones(1, 64), passes=5)
    predict(model, torch.ones(1, 64), passes=5, seed=1)
    masks = torch.stack(model.seen).reshape(30, 64)
    assert masks.unique(dim=0).shape == (30, 64)
    assert set(masks.unique().tolist()) == {0.0, 2.0}
    model.seen.clear()
    predict(nn.Sequential(nn.Identity(), model), torch.ones(1, 64), passes=5)
    assert torch.equal(torch.stack(model.seen).reshape(15, 64), masks[:15])


class Residual(ops.StochasticDepth):  # type: ignore[misc]
    """Adds what it doesn't drop, as a fused layer may."""

    @override
    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        branch: Tensor = super().forward(input)
        return branch if residual is None else residual + branch


def test_other_arguments_of_a_layer_stay_as_they_are() -> None:
    layer, x = Residual(0.5, "row"), torch.randn(3, 4)
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda module, args, y: seen.append(y))
    predict(layer, x, forward=lambda x: layer(x, residual=10 * x))
    predict(layer, x, forward=lambda x: layer(residual=10 * x, input=x))
    gains = torch.stack(seen) / x
    kept, dropped = torch.full((3, 4), 12.0), torch.full((3, 4), 10.0)
    for gain in gains:
        assert torch.allclose(gain, kept) or torch.allclose(gain, dropped)
    assert 0 < (gains > 11).float().mean() < 1
    assert torch.equal(gains[:8], gains[8:])


def test_half_precision_has_the_scale_of_float32() -> None:
    x = torch.randn(4, 64).bfloat16()
    seen: list[Tensor] = []
    model = nn.Dropout(0.1)
    model.register_forward_hook(lambda module, args, y: seen.append(y))
    predict(model, x, passes=2)
    assert seen[0].dtype == torch.bfloat16
    kept = seen[0] != 0
    assert torch.equal(seen[0][kept], (x.float() * (1 / 0.9)).bfloat16()[kept])
    assert kept.float().mean() > 0.75


def test_memory_format_is_kept() -> None:
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    seen: list[Tensor] = []
    model = nn.Sequential(nn.Dropout2d(0.5), nn.Conv2d(3, 3, 1)).to(
        memory_format=torch.channels_last
    )
    model[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    predict(model, x, passes=4, max_batch_size=4)
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in seen)


class Attending(nn.Module):
    """Attention in one of the ways in which it is called, with samples in dimension 0."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.attention = nn.MultiheadAttention(
            8, 2, dropout=0.4, batch_first=way != "sequence first", dtype=torch.float64
        )

    @override
    def forward(self, x: Tensor) -> Tensor:
        if self.way == "sequence first":
            x = x.transpose(0, 1)
            return self.attention(x, x, x, need_weights=False)[0].transpose(0, 1)  # type: ignore[no-any-return]
        causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
        options: dict[str, dict[str, Any]] = {
            "weights": {"average_attn_weights": False},
            "padded": {"key_padding_mask": x[:, :, 0] > 1, "need_weights": False},
            "causal": {"attn_mask": causal, "is_causal": True, "need_weights": False},
            "own masks": {
                "attn_mask": (x[:, None, :, 0] > 1).repeat_interleave(10, 0).view(-1, 5, 5)
            },
        }
        output, weights = self.attention(x, x[:, :, :], x, **options.get(self.way, {}))
        if self.way == "weights":
            return weights.flatten(1)  # type: ignore[no-any-return]
        return output  # type: ignore[no-any-return]


WAYS = ["plain", "weights", "padded", "causal", "own masks", "sequence first"]


@pytest.mark.parametrize("way", WAYS)
def test_attention_shares_its_masks(way: str) -> None:
    model, x = Attending(way), torch.randn(6, 5, 8, dtype=torch.float64)
    x[:, 0, 0] = 0  # no row of keys is masked as a whole
    x[4] = x[1]
    whole = predict(model, x, passes=4, max_batch_size=100)
    torch.testing.assert_close(whole.mean[4], whole.mean[1], rtol=1e-12, atol=1e-14)
    for rows in (torch.randperm(6), slice(2, 3), slice(1, 5)):
        part = predict(model, x[rows], passes=4)
        torch.testing.assert_close(part.mean, whole.mean[rows], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(part.std, whole.std[rows], rtol=1e-12, atol=1e-14)
    passes = 300
    got = predict(model, x[1:2], passes=passes)
    model.train()
    with torch.no_grad():
        independent = model(x[1:2].expand(1500, -1, -1))
    assert_alike(torch.stack([got.mean[0], got.std[0]]), independent, passes)


@pytest.mark.parametrize("padded", [False, True])
def test_torchs_encoder_drops_although_its_fused_form_would_not(padded: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True, dtype=torch.float64)
    model, x = nn.TransformerEncoder(layer, 2), torch.randn(6, 5, 8, dtype=torch.float64)
    padding = torch.zeros(6, 5, dtype=torch.bool)
    padding[:, 4] = padded

    def forward(batch: Any) -> Tensor:
        return model(batch[0], src_key_padding_mask=batch[1]).mean(1)  # type: ignore[no-any-return]

    whole = predict(model, [x, padding], forward=forward)  # type: ignore[arg-type]
    part = predict(model, [x[3:], padding[3:]], forward=forward)  # type: ignore[arg-type]
    torch.testing.assert_close(part.mean, whole.mean[3:], rtol=1e-11, atol=1e-13)
    assert whole.std.min() > 1e-3
    for each in model.layers:
        each.self_attn.dropout = 0.0
    without = predict(model, [x, padding], forward=forward)  # type: ignore[arg-type]
    assert (without.std - whole.std).abs().min() > 1e-6


def test_attention_with_a_forward_of_its_own_keeps_it() -> None:
    model = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
    original, calls = model.forward, []
    model.forward = lambda *args: calls.append(1) or original(*args)  # type: ignore[method-assign,func-returns-value]
    own = model.forward
    x = torch.randn(3, 5, 8)
    predict(model, x, passes=4, forward=lambda x: model(x, x, x)[0])
    assert model.forward is own
    assert len(calls) == 4


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_that_drop_within_are_refused(cls: type[nn.RNN]) -> None:
    class Last(nn.Module):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__()
            self.layers = nn.ModuleList(layers)

        @override
        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)[0] if isinstance(layer, nn.RNNBase) else layer(x)
            return x[:, -1]

    x = torch.randn(4, 3, 2)
    with pytest.raises(RuntimeError, match=r"layers.0 \(\w+\) drops between its own.*num_layers=1"):
        predict(Last(cls(2, 2, num_layers=2, dropout=0.5, batch_first=True)), x)
    stacked = Last(cls(2, 2, batch_first=True), nn.Dropout(0.5), cls(2, 2, batch_first=True))
    first = stacked.layers[0]
    assert isinstance(first, nn.RNNBase)
    first.dropout = 0.5  # between layers, of which there is one
    assert predict(stacked, x).std.min() > 0


def test_samples_elsewhere_than_in_dimension_0_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(0, 1), nn.Dropout(0.5))
    with pytest.raises(RuntimeError, match=r"1 drops from .*\(12, 2\).*of size 4, in dimension 0"):
        predict(model, torch.ones(4, 3, 2))
    attention = nn.MultiheadAttention(2, 1, dropout=0.5)
    x = torch.ones(4, 3, 2)
    with pytest.raises(RuntimeError, match=r"the model drops from .*of size 4, in dimension 1"):
        predict(attention, x, forward=lambda x: attention(x, x, x)[0])


@pytest.mark.gpu
def test_on_a_gpu_masks_are_shared_and_generators_kept() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    model, x = copy.deepcopy(layer).cuda(), torch.randn(6, 5, 8, device="cuda")
    state = torch.cuda.get_rng_state()
    whole = predict(model, x)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    part = predict(model, x[2:4])
    torch.testing.assert_close(part.mean, whole.mean[2:4])
    torch.testing.assert_close(part.std, whole.std[2:4])
    assert whole.std.min() > 0
