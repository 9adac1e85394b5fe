"""Preprocessing against scikit-learn and float64, what it notices, and checkpoints."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_practices.data import (
    MeanSubtraction,
    MinMax,
    Preprocessing,
    Standardize,
    Whiten,
)
from tests.data.fitted import each, features, images, statistics


def test_results_are_those_of_scikit_learn() -> None:
    train, other = features(dtype=torch.float64), features(7, torch.float64) * 2
    for ours, theirs in (
        (Standardize(), StandardScaler()),
        (MeanSubtraction(), StandardScaler(with_std=False)),
        (MinMax((-2, 3)), MinMaxScaler((-2, 3))),
    ):
        expected = torch.from_numpy(theirs.fit(train.numpy()).transform(other.numpy()))
        torch.testing.assert_close(ours.fit(train)(other), expected, rtol=1e-10, atol=1e-10)
    whitened = Whiten("pca").fit(train)(other)
    n = len(train)  # scikit-learn divides by n - 1
    expected = torch.from_numpy(PCA(whiten=True).fit(train.numpy()).transform(other.numpy()))
    expected *= (n / (n - 1)) ** 0.5
    torch.testing.assert_close(whitened.abs(), expected.abs(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["zca", "pca"])
def test_whitened_data_are_uncorrelated_with_variance_one(kind: Any) -> None:
    x = features(dtype=torch.float64)
    y = Whiten(kind).fit(x)(x)
    torch.testing.assert_close(y.T.cov(correction=0), torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(y.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)
    if kind == "zca":  # the symmetric matrix, of all that whiten
        matrix = Whiten(kind).fit(x).matrix
        torch.testing.assert_close(matrix, matrix.T)
        assert bool((torch.linalg.eigvalsh(matrix) > 0).all())


def test_shrinkage_moves_the_covariance_towards_a_multiple_of_the_identity() -> None:
    x = features(dtype=torch.float64)
    layer = Whiten(shrinkage=0.25).fit(x)
    covariance = x.T.cov(correction=0)
    shrunk = 0.75 * covariance + 0.25 * covariance.trace() / 4 * torch.eye(4, dtype=x.dtype)
    root = layer.matrix @ shrunk @ layer.matrix.T
    torch.testing.assert_close(root, torch.eye(4, dtype=x.dtype))
    far = Whiten(shrinkage=1.0).fit(x)
    expected = (x - x.mean(0)) / (covariance.trace() / 4).sqrt()
    torch.testing.assert_close(far(x), expected)


@pytest.mark.parametrize("per", ["channel", "pixel"])
def test_each_channel_or_pixel_has_its_own_statistics(per: Any) -> None:
    x = images().double()
    dims = (0, 2, 3) if per == "channel" else (0,)
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    torch.testing.assert_close(Standardize(per).fit(x)(x), (x - mean) / variance.sqrt())
    least, most = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    torch.testing.assert_close(MinMax(per=per).fit(x)(x), 2 * (x - least) / (most - least) - 1)


def test_sequences_have_statistics_of_features_or_of_channels() -> None:
    x = features(60).view(6, 10, 4)
    flat = Standardize().fit(x.reshape(-1, 4))
    torch.testing.assert_close(Standardize("feature").fit(x)(x).view(-1, 4), flat(x.view(-1, 4)))
    swapped = Standardize("channel").fit(x.mT)(x.mT)
    torch.testing.assert_close(swapped.mT, Standardize("feature").fit(x)(x))
    with pytest.raises(ValueError, match=r"\(6, 10, 4\).*per='feature' or per='channel'"):
        Standardize().fit(x)


@each
@pytest.mark.parametrize("x", [features(), images()], ids=["features", "images"])
def test_inverse_undoes_it(make: Callable[..., Preprocessing], x: Tensor) -> None:
    layer = make().fit(x)
    torch.testing.assert_close(layer.inverse(layer(x)), x, rtol=1e-4, atol=1e-3)


def test_a_large_offset_costs_no_precision() -> None:
    x = torch.randn(10_000, 3, generator=torch.Generator().manual_seed(0)).double() + 1e8
    y = Standardize().fit(DataLoader(x, 97))(x)  # type: ignore[arg-type]
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(3).double(), rtol=1e-6, atol=0)
    assert float(y.mean(0).abs().max()) < 1e-6


@each
def test_checkpoints_hold_the_statistics(make: Callable[..., Preprocessing]) -> None:
    x = features()
    model = nn.Sequential(make().fit(x), nn.Linear(4, 1))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = nn.Sequential(make(), nn.Linear(4, 1))
    other.load_state_dict(torch.load(file, weights_only=True))  # strict
    assert torch.equal(other(x), model(x))
    again = nn.Sequential(make().fit(x[:9, :3]), nn.Linear(4, 1))  # of other shapes
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))


@each
def test_a_cast_model_keeps_its_statistics(make: Callable[..., Preprocessing]) -> None:
    x = features()
    layer = make().fit(x)
    before = statistics(layer)
    for cast in (nn.Module.half, nn.Module.bfloat16, nn.Module.double):
        cast(nn.ModuleList([layer]))
        after = statistics(layer)
        assert all(
            a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(after, before, strict=True)
        )
    low = x.to(torch.bfloat16)
    expected = layer(low.float()).to(torch.bfloat16)
    assert layer(low).dtype == torch.bfloat16
    assert torch.equal(layer(low), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer.float()(x))


def test_whole_numbers_become_floats() -> None:
    x = (images() * 80).to(torch.uint8)
    layer = Standardize().fit(x)
    y = layer(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, layer(x.float()))
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [Standardize, MinMax])
def test_constant_columns_are_not_scaled_and_counted(make: Any) -> None:
    x = features()
    x[:, 1], x[:, 3] = 7.0, 0.1
    with pytest.warns(UserWarning, match=r"2 of 4 columns can't be scaled.* at 1, 3"):
        layer = make().fit(x)
    assert torch.equal(layer(x)[:, [1, 3]], torch.zeros(len(x), 2))
    moved = layer(x + 1)[:, 1]
    torch.testing.assert_close(moved, torch.ones(len(x)))


def test_noise_of_rounding_counts_as_constant() -> None:
    x = torch.full((50, 2), 1000.1)
    x[::2, 0] = torch.nextafter(x[0, 0], torch.tensor(2e3))
    with pytest.warns(UserWarning, match="2 of 2 columns can't be scaled"):
        y = Standardize().fit(x)(x)
    assert float(y.abs().max()) < 1e-3


def test_directions_without_data_do_not_explode() -> None:
    x = features()
    x = torch.cat([x, x[:, :1] + x[:, 1:2]], 1)  # equal up to rounding
    with pytest.warns(UserWarning, match="vary in 4 of 5 directions"):
        layer = Whiten().fit(x)
    outside = x[:1] + torch.tensor([1.0, 1, 0, 0, -1])
    assert float((layer(outside) - layer(x[:1])).abs().max()) < 1e-2
    torch.testing.assert_close(layer.inverse(layer(x)), x, rtol=1e-4, atol=1e-2)
    few = features(3)
    with pytest.warns(UserWarning, match="vary in 2 of 4 directions"):
        assert bool(Whiten().fit(few)(features() * 10).isfinite().all())
    assert bool((Whiten(shrinkage=0.1).fit(few)(features()).abs() < 1e3).all())


def test_eigenvalues_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    solved, solve = [], torch.linalg.eigh

    def noted(matrix: Tensor) -> Any:
        solved.append(matrix.shape)
        return solve(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", noted)
    Whiten().fit(features())
    assert solved == [(4, 4)]


def test_standardised_data_are_noticed() -> None:
    x = features(1000)
    y = Standardize().fit(x)(x)
    with pytest.warns(UserWarning, match=r"standardised already: their means .* between 1 and 1"):
        Standardize().fit(y)


@each
def test_an_unfitted_layer_raises(make: Callable[..., Preprocessing]) -> None:
    with pytest.raises(RuntimeError, match=r"was not fitted: call fit\(data\)"):
        make()(features())
    with pytest.raises(RuntimeError, match="was not fitted"):
        make().inverse(features())
    assert not make().is_fitted


@each
def test_other_shapes_than_fitted_are_refused(make: Callable[..., Preprocessing]) -> None:
    with pytest.raises(ValueError, match=r"fitted to 4 .*but got a tensor of shape"):
        make().fit(features())(features()[:, :3])


@pytest.mark.parametrize("make", [MeanSubtraction, Standardize, MinMax])
@pytest.mark.parametrize("shape", [(50,), (50, 1)])
def test_one_number_a_sample_may_have_a_dimension_more_or_less(make: Any, shape: Any) -> None:
    y = features(50)[:, 0].view(shape)
    layer = make().fit(y)
    scaled = layer(y).flatten()
    for other in ((50,), (50, 1), (5, 10)) if shape == (50,) else ((50,), (50, 1)):
        back = layer.inverse(scaled.view(other))
        torch.testing.assert_close(back, y.view(other))
    assert layer.inverse(scaled[0]).shape == ()
