"""Weights that two processes share, against those of one process."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor

from lightning_practices.init import audit, initialize, lsuv_
from tests import processes

pytestmark = pytest.mark.plain


def network(is_shared: bool) -> nn.Module:
    model = nn.Sequential(
        nn.Linear(5, 7), nn.BatchNorm1d(7), nn.SiLU(), nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 1)
    )
    if is_shared:
        mesh = init_device_mesh("cpu", (2,))
        for layer in model:
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def drawn(is_shared: bool, seed: int, own: bool) -> list[Tensor]:
    """Return the whole parameters after a draw; ``own``: from a generator, not from torch's."""
    torch.manual_seed(seed)
    model = network(is_shared)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed) if own else None
    report = initialize(model, generator=generator)
    whole = [
        (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for p in model.parameters()
    ]
    assert is_shared == isinstance(next(model.parameters()), DTensor)
    for one, p in zip(report.initialized, [p for p in whole if p.dim() == 2], strict=True):
        assert one.after == pytest.approx(p.double().std(correction=0).item(), rel=1e-9)
    return whole


@pytest.mark.parametrize("own", [True, False])
def test_shards_are_those_of_the_whole_draw_of_rank_0(own: bool) -> None:
    expected = drawn(False, 4, own)
    for results in processes.run(drawn, [(True, 4, own), (True, 5, own)]):  # seeds by rank
        assert all(map(torch.equal, results, expected))


def refused() -> list[str]:
    model = FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"))
    shared: Any = network(True)
    messages = []
    for call in (
        lambda: initialize(model),
        lambda: audit(model, torch.ones(2, 4)),
        lambda: lsuv_(shared, torch.ones(2, 5)),
    ):
        with pytest.raises(ValueError, match="shard") as raised:
            call()
        messages.append(str(raised.value))
    return messages


def test_flat_shards_are_refused() -> None:
    for first, second, third in processes.run(refused, [()] * 2):
        assert "use fully_shard (FSDP2)" in first
        assert "use fully_shard (FSDP2)" in second
        assert "0.weight is sharded: call lsuv_ before" in third
