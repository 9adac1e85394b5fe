"""Preprocessing against scikit-learn and float64, over any batches, and what it refuses."""

import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_practices.data import (
    BatchPreprocessing,
    Compose,
    MeanSubtraction,
    MinMax,
    Preprocessing,
    Standardize,
    Whiten,
    preprocessing,
)
from tests.processes import run

MAKERS: dict[str, Callable[..., Preprocessing]] = {
    "center": MeanSubtraction,
    "standardize": Standardize,
    "min_max": MinMax,
    "zca": Whiten,
    "pca": lambda **options: Whiten("pca", **options),
    "shrunk": lambda **options: Whiten(shrinkage=0.3, **options),
    "both": lambda **options: Compose([Standardize(**options), MinMax((0, 1), **options)]),
}
each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def features(rows: int = 103, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    mixing = torch.tensor([[2.0, 1, 0, 0], [0, 30, 0, 0], [0, 1, 0.1, 0], [5, 0, 0, 1]]).double()
    return (x @ mixing + torch.tensor([1e3, 0, -5, 0.1])).to(dtype)


def images(count: int = 21) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    colours = torch.tensor([0.2, 1.0, 3.0]).view(3, 1, 1)
    return torch.rand(count, 3, 4, 5, generator=generator) * colours


def statistics(layer: nn.Module) -> list[Tensor]:
    return list(layer.state_dict().values())


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


@each
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (7, 0), (103, 0), (7, 2)])
def test_the_size_of_batches_and_workers_do_not_matter(
    make: Callable[..., Preprocessing], batch_size: int, workers: int
) -> None:
    x = features(dtype=torch.float64)
    loader = DataLoader(TensorDataset(x, x), batch_size, num_workers=workers)
    for ours, whole in zip(statistics(make().fit(loader)), statistics(make().fit(x)), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-9)


def test_large_samples_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_practices.data._preprocessing import reading

    x = images().double()
    whole = statistics(Whiten("zca", per="channel").fit(x))
    monkeypatch.setattr(reading, "_PIECE", 100)
    for ours, expected in zip(statistics(Whiten(per="channel").fit(x)), whole, strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_large_offset_costs_no_precision() -> None:
    x = torch.randn(10_000, 3, generator=torch.Generator().manual_seed(0)).double() + 1e8
    y = Standardize().fit(DataLoader(x, 97))(x)  # type: ignore[arg-type]
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(3).double(), rtol=1e-6, atol=0)
    assert float(y.mean(0).abs().max()) < 1e-6


def of_rank(rank: int, counts: tuple[int, ...]) -> list[Tensor]:
    x = features(sum(counts), torch.float64)
    own = x[sum(counts[:rank]) : sum(counts[: rank + 1])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [s for make in MAKERS.values() for s in statistics(make().fit(own.split(5) or own))]


@pytest.mark.parametrize("counts", [(30, 7), (37, 0)])
def test_ranks_of_any_sizes_get_the_statistics_of_all_data(counts: tuple[int, int]) -> None:
    first, second = run(of_rank, [(0, counts), (1, counts)])
    whole = features(sum(counts), torch.float64)
    alone = [s for make in MAKERS.values() for s in statistics(make().fit(whole))]
    for a, b, expected in zip(first, second, alone, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, expected, rtol=1e-9, atol=1e-9)


def with_nan_on(rank: int) -> str:
    x = features()
    if rank == 1:
        x[3, 2] = torch.nan
    with pytest.raises((ValueError, RuntimeError)) as error:
        Standardize().fit(x)
    return str(error.value)


def test_an_error_of_one_rank_ends_all_ranks() -> None:
    first, second = run(with_nan_on, [(0,), (1,)])
    assert "rank 1 raised ValueError: the data hold nan in sample 3" in first
    assert "the data hold nan in sample 3 (row 3 of batch 0), at (2,) of it" in second


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


def test_fitting_again_begins_anew_and_an_error_changes_nothing() -> None:
    x = features()
    layer = Standardize().fit(x * 3 + 1)
    layer.fit(x)
    assert torch.equal(layer.mean, Standardize().fit(x).mean)
    before = statistics(layer)
    with pytest.raises(ValueError, match="no samples"):
        layer.fit(x[:0])
    both = Compose([Standardize(), Whiten()]).fit(x)
    kept = [s.clone() for s in statistics(both)]
    with (
        pytest.warns(UserWarning, match="4 of 4 columns"),
        pytest.raises(ValueError, match="two samples"),
    ):
        both.fit(x[:1] + 5)
    assert all(map(torch.equal, statistics(layer), before))
    assert all(map(torch.equal, statistics(both), kept))


def test_random_numbers_are_as_before() -> None:
    loader = DataLoader(TensorDataset(features()), 10, shuffle=True)
    before = torch.get_rng_state()
    Standardize().fit(loader)
    assert torch.equal(torch.get_rng_state(), before)


class Rows(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(features())


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_data_are_left_alone(make: Callable[..., Preprocessing], dtype: torch.dtype) -> None:
    x = features(dtype=dtype)
    before = x.clone()
    layer = make().fit(x)
    layer.inverse(layer(x))
    assert torch.equal(x, before)


def test_finite_numbers_whose_sum_is_not_are_read() -> None:
    largest = torch.tensor([[3e38], [3e38], [3.2e38]])
    assert MinMax().fit(largest)(largest).flatten().tolist() == [-1.0, -1.0, 1.0]


def test_data_may_be_a_dataset_an_iterable_or_a_generator() -> None:
    x = features()
    expected = Standardize().fit(x).std
    for data in (TensorDataset(x), DataLoader(Rows(), 8), x.split(9), iter(x.split(9))):
        torch.testing.assert_close(Standardize().fit(data).std, expected)
    dicts = [{"x": part, "y": part} for part in x.split(50)]
    torch.testing.assert_close(Standardize().fit(dicts, "x").std, expected)
    with pytest.raises(TypeError, match="reads the data 2 times"):
        Compose([Standardize(), MinMax()]).fit(iter(x.split(9)))


def test_images_of_different_sizes_have_statistics_of_channels() -> None:
    batches = [images()[:, :, :2], images()]
    layer = Standardize().fit(batches)
    pixels = torch.cat([b.movedim(1, -1).reshape(-1, 3) for b in batches])
    torch.testing.assert_close(layer.mean, pixels.mean(0))
    with pytest.raises(ValueError, match=r"\(3, 2, 5\) and \(3, 4, 5\).*per='channel'"):
        Standardize("pixel").fit(batches)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_are_refused_with_their_place(value: float) -> None:
    x = images()
    x[13, 2, 1, 4] = value
    with pytest.raises(
        ValueError, match=rf"hold {value} in sample 13 \(row 3 of batch 1\), at \(2, 1, 4\)"
    ):
        Standardize().fit(x.split(10))


@pytest.mark.parametrize(
    ("data", "entry", "error", "message"),
    [
        ([{"image": images()}], 0, KeyError, "no entry 0: the entries are 'image'"),
        ([(images(),)], 1, IndexError, "no entry 1: there are 1, from 0 on"),
        ([(images(),)], "image", IndexError, "no entry 'image'"),
        (images(), "image", IndexError, "neither a dict nor a tuple"),
        ([([images()[0], images()[1]],)], 0, TypeError, "different sizes"),
        ([("a", images())], 0, TypeError, "has to be a tensor, but got a str"),
        ([torch.zeros(3, 2, dtype=torch.complex64)], 0, TypeError, "real numbers"),
        (3, 0, TypeError, "data has to be a tensor"),
        ([], 0, ValueError, "no samples"),
        ([torch.tensor(3.0)], 0, ValueError, "number without dimensions"),
    ],
)
def test_bad_data_are_refused(data: Any, entry: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Standardize().fit(data, entry)


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


def test_layers_by_name() -> None:
    assert isinstance(preprocessing("center"), MeanSubtraction)
    assert preprocessing("whiten", kind="pca", shrinkage=0.1).config() == {
        "class": "Whiten",
        "kind": "pca",
        "shrinkage": 0.1,
        "per": "auto",
    }
    with pytest.raises(ValueError, match="standardize"):
        preprocessing("standardise")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two numbers, the lesser first"):
        MinMax((1, -1))


class Pair(NamedTuple):
    image: Tensor
    target: Tensor


def test_a_named_tuple_has_entries_by_name() -> None:
    batch = Pair(features(), features()[:, 0])
    layers = BatchPreprocessing({"target": "min_max"})
    layers.fit([batch])
    made = layers(batch)
    assert isinstance(made, Pair)
    assert made.image is batch.image
    assert torch.equal(made.target, BatchPreprocessing({1: MinMax().fit(batch.target)})(batch)[1])
    with pytest.raises(IndexError, match="there is no entry 'label': there are 2"):
        BatchPreprocessing({"label": "min_max"}).fit([batch])


def test_entries_of_a_batch_have_layers_of_their_own() -> None:
    x, y = features(), features()[:, 0]
    both = BatchPreprocessing({0: "standardize", 1: MinMax()})
    both.fit(DataLoader(TensorDataset(x, y), 16))
    inputs, targets = both((x, y))
    assert torch.equal(inputs, Standardize().fit(x)(x))
    assert (float(targets.min()), float(targets.max())) == (-1.0, 1.0)
    file = io.BytesIO()
    torch.save(both.state_dict(), file)
    file.seek(0)
    again = BatchPreprocessing.from_state_dict(torch.load(file, weights_only=True))
    assert again.is_like(both)
    assert torch.equal(again((x, y))[1], targets)
    assert isinstance(again([x, y]), list)
    steps = BatchPreprocessing(["standardize", MinMax((0, 1))])
    steps.fit([x])
    assert torch.equal(steps(x), Compose([Standardize(), MinMax((0, 1))]).fit(x)(x))
    again = BatchPreprocessing.from_state_dict(steps.state_dict())
    assert torch.equal(again(x), steps(x))
    with pytest.raises(ValueError, match="one preprocessing layer at least"):
        BatchPreprocessing([])
    with pytest.raises(KeyError, match=r"preprocess=\{'image': 'standardize'\}"):
        BatchPreprocessing("standardize").fit([{"image": x}])
    with pytest.raises(TypeError, match="has to be a name such as 'standardize'"):
        BatchPreprocessing(3)  # type: ignore[arg-type]
