"""What preprocessing is fitted to: any batches, on any ranks, and what it refuses."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_practices.data import (
    Compose,
    MinMax,
    Preprocessing,
    Standardize,
    Whiten,
)
from tests.data.fitted import MAKERS, each, features, images, statistics
from tests.processes import run


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
