"""Optimizers and penalties of weights that two processes share, against one that has them whole."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor

from lightning_practices.optim import (
    add_penalty_gradients_,
    decayed_weights,
    make_optimizer,
    parameter_groups,
    penalty,
    soft_threshold_,
)
from tests import processes


def network(is_shared: bool) -> nn.Module:
    """Return a network whose parameters do not split evenly, some of them in one process alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3), nn.Linear(3, 1))
    model.double()
    if is_shared:
        mesh = init_device_mesh("cpu", (2,))
        for layer in model:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def backward(model: nn.Module) -> None:
    torch.manual_seed(1)
    model(torch.randn(8, 5, dtype=torch.float64)).square().sum().backward()


def whole(tensor: Any) -> Tensor:
    full: Tensor = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
    return full.clone()


def penalised(is_shared: bool) -> list[Tensor]:
    model = network(is_shared)
    backward(model)
    weights = decayed_weights(model)
    assert [*weights] == ["0.weight", "2.weight", "3.weight"]
    results = [penalty(weights.values(), l1=0.3, l2=0.7).detach()]
    assert type(results[0]) is Tensor
    add_penalty_gradients_(weights.values(), l1=0.3, l2=0.7)
    add_penalty_gradients_(weights.values(), l1=0.3, scale=torch.tensor(8.0))
    results += [whole(p.grad) for p in model.parameters()]
    soft_threshold_(weights.values(), 0.1)
    soft_threshold_(weights.values(), torch.tensor(0.1))
    return [*results, *map(whole, model.parameters())]


def test_penalties() -> None:
    expected = penalised(False)
    for results in processes.run(penalised, [(True,)] * 2):
        for mine, right in zip(results, expected, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-15)


def differentiated() -> list[Tensor]:
    model = network(True)
    penalty(model.parameters(), l1=0.3, l2=0.7).backward()
    return [whole(p.grad) for p in model.parameters()]


def test_the_values_own_gradient() -> None:
    expected = [0.3 * p.detach().sign() + 0.7 * p.detach() for p in network(False).parameters()]
    for grads in processes.run(differentiated, [()] * 2):
        for mine, right in zip(grads, expected, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-15)


NAMES = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw")


def stepped(name: Any, is_shared: bool) -> tuple[bool, list[Tensor]]:
    model = network(is_shared)
    optimizer = make_optimizer(name, parameter_groups(model, 0.1), lr=0.01)
    for _ in range(2):
        backward(model)
        optimizer.step()
        optimizer.zero_grad()
    return bool(optimizer.defaults.get("fused")), [whole(p) for p in model.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_optimizers(name: str) -> None:
    _, expected = stepped(name, False)
    for fused, weights in processes.run(stepped, [(name, True)] * 2):
        assert fused == (name in ("adam", "adamw"))  # torch has no other for shards
        for mine, right in zip(weights, expected, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-12)


def mixed() -> list[Any]:
    mesh = init_device_mesh("cpu", (2,))
    params = [nn.Parameter(torch.ones(2)), nn.Parameter(distribute_tensor(torch.ones(4), mesh))]
    defaults = make_optimizer("adamw", params).defaults
    return [defaults["fused"], defaults["foreach"]]


def test_both_shared_and_whole() -> None:
    assert processes.run(mixed, [()] * 2) == [[None, None]] * 2


def saved() -> list[str]:
    model = network(True)
    optimizer = make_optimizer("adamw", parameter_groups(model, 0.1, layer_decay=0.5, lr=0.1))
    backward(model)
    optimizer.step()
    state = get_optimizer_state_dict(model, optimizer)
    for group in optimizer.param_groups:
        group["name"] = "lost"
    set_optimizer_state_dict(model, optimizer, state)
    return [group["name"] for group in optimizer.param_groups]


def test_names_stay_in_distributed_checkpoints() -> None:
    kinds = [(layer, kind) for layer in range(3) for kind in ("decay", "no_decay")]
    expected = [f"layer_{place}_{kind}" for place, kind in kinds]
    assert processes.run(saved, [()] * 2) == [expected] * 2


# What is refused.


def unsummed() -> str:
    mesh = init_device_mesh("cpu", (2,))
    w = nn.Parameter(distribute_tensor(torch.ones(4), mesh))
    w.grad = DTensor.from_local(torch.ones(4), mesh, [Partial()])
    with pytest.raises(RuntimeError) as error:
        add_penalty_gradients_(w, l2=1.0)
    return str(error.value)


def test_gradients_that_are_not_as_their_weights() -> None:
    for message in processes.run(unsummed, [()] * 2):
        assert "sum it over its processes and share it out" in message


def flattened() -> str:
    device = torch.device("cpu")
    model = FullyShardedDataParallel(network(False), device_id=device, use_orig_params=True)
    with pytest.raises(ValueError, match="makes flat shards") as error:
        parameter_groups(nn.Sequential(model))
    return str(error.value)


def test_flat_shards() -> None:
    for message in processes.run(flattened, [()] * 2):
        assert "use fully_shard (FSDP2), in Lightning ModelParallelStrategy" in message
