"""Running statistics over the batches of several processes, against those computed by hand."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_practices.nn import SyncBatchNorm
from lightning_practices.surgery import recalibrate_batch_norm
from tests import processes
from tests.surgery.test_recalibrate import (
    Statistics,
    assert_close,
    assert_same,
    batches,
    by_hand,
    network,
    record,
    statistics_of,
    trained,
)

pytestmark = pytest.mark.plain


def share(net: Any, mine: list[Tensor]) -> list[Statistics]:
    """Compute in one process with its share of the batches."""
    recalibrate_batch_norm(net, mine)
    return [statistics_of(layer) for layer in net if isinstance(layer, _BatchNorm)]


@pytest.mark.parametrize("counts", [(4, 1), (3, 1, 2), (1, 0, 3)])
def test_ranks_have_the_statistics_of_all_batches(counts: Sequence[int]) -> None:
    net, data = trained(network()), batches((4, 6, 5, 3, 7, 4)[: sum(counts)])
    expected = list(by_hand(net, data).values())
    parts = [[data.pop() for _ in range(count)] for count in counts]
    ranks = processes.run(share, [(net, part) for part in parts])
    for rank in ranks:
        for actual, first, exact in zip(rank, ranks[0], expected, strict=True):
            assert all(map(torch.equal, actual[:2], first[:2]))
            assert_close(actual, exact)


def share_synchronised(net: Any, mine: list[Tensor]) -> list[Statistics]:
    """Compute in one process, with layers that normalise the batches of all processes together."""
    net = SyncBatchNorm.convert_sync_batchnorm(net)
    recalibrate_batch_norm(net, mine)
    return [statistics_of(net[i]) for i in (1, 5)]


def test_synchronised_layers_count_a_batch_of_all_ranks_once() -> None:
    net, data = trained(network()), batches((4, 6, 5, 3, 7, 4))
    joined = [torch.cat(data[i : i + 3]) for i in (0, 3)]
    ranks = processes.run(share_synchronised, [(net, data[rank::3]) for rank in range(3)])
    for rank in ranks:
        for ours, first, exact in zip(rank, ranks[0], by_hand(net, joined).values(), strict=True):
            assert_close(ours, exact)
            assert all(map(torch.equal, ours[:2], first[:2]))


def share_nothing(net: Any) -> list[Any]:
    before = record(net)
    with pytest.raises(ValueError, match="no batch has reached"):
        recalibrate_batch_norm(net, [])
    return [before, record(net)]


def test_no_rank_has_a_batch() -> None:
    for before, after in processes.run(share_nothing, [(trained(network()),)] * 3):
        assert_same(after, before)
