"""The picture of the masks, drawn as a user draws it, and what is on it."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from examples import masks
from tests.examples.scripts import assert_like_the_committed, run_main


@pytest.fixture(scope="module")
def drawn() -> masks.Masks:
    """Return the masks, by which of the four methods, and the clusters."""
    return masks.make_masks(masks.load_photographs())


def kept_by(drawn: masks.Masks, method: str) -> Tensor:
    (kept,) = (kept for name, kept in drawn.kept.items() if name.startswith(method))
    assert kept.shape == (3, masks.HEIGHT, masks.WIDTH)
    assert 0 < kept.sum() < kept.numel()
    return kept


def test_dropout_hides_single_elements(drawn: masks.Masks) -> None:
    hidden = (~kept_by(drawn, "Dropout:")).double()
    p, n = masks.RATE, hidden.numel()
    assert abs(hidden.mean().item() - p) < 5 * math.sqrt(p * (1 - p) / n)
    centred = hidden - p
    for a, b in ((centred[0], centred[1]), (centred[:, 1:], centred[:, :-1])):
        correlation = (a * b).mean().item() / (p * (1 - p))
        assert abs(correlation) < 5 / math.sqrt(a.numel())


def test_spatial_dropout_hides_one_channel(drawn: masks.Masks) -> None:
    kept = kept_by(drawn, "Spatial dropout").flatten(1)
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert kept[:, 0].sum() == 2


def test_drop_block_hides_squares(drawn: masks.Masks) -> None:
    kept = kept_by(drawn, "DropBlock")
    assert torch.equal(kept, kept[:1].expand_as(kept))
    hidden = (~kept[:1]).double()

    def squares(side: int) -> Tensor:
        """Return what squares cover that are all hidden."""
        corners = 1 - max_pool2d(1 - hidden, side, stride=1)
        return max_pool2d(pad(corners, [side - 1] * 4), side, stride=1)

    assert torch.equal(squares(masks.BLOCK_SIZE), hidden)
    assert not torch.equal(squares(masks.BLOCK_SIZE + 1), hidden)


def test_drop_cluster_hides_clusters_that_hang_together(drawn: masks.Masks) -> None:
    kept, clusters = kept_by(drawn, "DropCluster"), drawn.clusters
    assert torch.equal(kept, kept[:1].expand_as(kept))
    numbers = clusters.unique()
    assert len(numbers) == masks.CLUSTERS
    states = {bool(kept[0][clusters == k].all()) for k in numbers}
    assert states == {True, False}
    assert all(len(kept[0][clusters == k].unique()) == 1 for k in numbers)

    def neighbours(clusters: Tensor) -> float:
        down, right = clusters[1:] == clusters[:-1], clusters[:, 1:] == clusters[:, :-1]
        return torch.cat([down.flatten(), right.flatten()]).double().mean().item()

    shuffled = clusters.flatten()[torch.randperm(clusters.numel())].view_as(clusters)
    assert neighbours(clusters) > 0.75  # 40 squares would have about 0.83
    assert neighbours(shuffled) < 0.1


def test_the_picture_is_drawn_where_it_is_told(
    drawn: masks.Masks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "new" / "masks.png"
    monkeypatch.setattr(masks, "make_masks", lambda photographs: drawn)
    run_main(masks, "--out", out)
    assert capsys.readouterr().out == f"Wrote {out}\n"
    assert_like_the_committed(out, masks)
