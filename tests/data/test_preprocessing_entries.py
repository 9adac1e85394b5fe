"""Preprocessing layers by name, and for entries of a batch."""

import io
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_practices.data import (
    BatchPreprocessing,
    Compose,
    MeanSubtraction,
    MinMax,
    Standardize,
    preprocessing,
)
from tests.data.fitted import features


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
    with pytest.raises(ValueError, match=r"preprocess=\[\] has an empty list: give a name"):
        BatchPreprocessing([])
    with pytest.raises(KeyError, match=r"preprocess=\{'image': 'standardize'\}"):
        BatchPreprocessing("standardize").fit([{"image": x}])
    with pytest.raises(TypeError, match="has to be a name such as 'standardize'"):
        BatchPreprocessing(3)  # type: ignore[arg-type]
