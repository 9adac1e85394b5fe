"""What is frozen or refused where parameters are shards of two processes."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import SGD

from lightning_practices.surgery import blocks, feature_extractor, freeze, replace_head
from tests import processes

pytestmark = pytest.mark.plain


def network(*, is_sharded: bool) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()), nn.Linear(4, 4), nn.ReLU(),
        nn.Linear(4, 2),
    )  # fmt: skip
    if is_sharded:
        mesh = init_device_mesh("cpu", (2,))
        for part in (model[0], model[1], model):
            fully_shard(part, mesh=mesh)
    return model


def whole(value: Any) -> torch.Tensor:
    full: torch.Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return full.detach().clone()


def frozen_fit(is_sharded: bool) -> tuple[list[Any], list[str], dict[str, torch.Tensor]]:
    model = network(is_sharded=is_sharded)
    found = list(blocks(model))
    freeze(model, found[1:])
    before = {name: whole(value) for name, value in model.state_dict().items()}
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))  # one batch on both
    for _ in range(3):
        model.train()
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = {name: whole(value) for name, value in model.state_dict().items()}
    return found, [name for name in before if not torch.equal(before[name], after[name])], after


def test_frozen_under_fsdp2() -> None:
    results = processes.run(frozen_fit, [(True,)] * 2)
    found, changed, expected = frozen_fit(is_sharded=False)
    for its_blocks, its_changes, after in results:
        assert its_blocks == found
        assert its_changes == changed == ["3.weight", "3.bias"]
        for name, value in expected.items():
            torch.testing.assert_close(after[name], value, rtol=1e-6, atol=1e-7)


def refused() -> list[str]:
    model = network(is_sharded=True)
    before = dict(model.named_parameters())
    messages = []
    for surgery in (replace_head, feature_extractor):
        try:
            surgery(model, 3)
        except ValueError as error:
            messages.append(str(error))
    assert all(before[name] is p and p.requires_grad for name, p in model.named_parameters())
    return messages


def test_a_sharded_head_is_not_replaced() -> None:
    message = "the head ends in '3', whose weight is sharded: replace the head before sharding"
    assert processes.run(refused, [()] * 2) == [[message] * 2] * 2
