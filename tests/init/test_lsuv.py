"""Initialisation by data."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.models import resnet18

from lightning_practices.init import lsuv_

pytestmark = pytest.mark.plain


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the output of each linear and convolution layer."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, y, name=name: seen.update({name: y.detach()}))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


def test_each_output_has_unit_variance() -> None:
    x = 7 * torch.randn(256, 20, dtype=torch.float64, generator=seeded()) + 3
    model: Any = nn.Sequential(
        *[each for _ in range(30) for each in (nn.Linear(20, 20), nn.SiLU())], nn.Linear(20, 3)
    ).double()
    report = lsuv_(model, x, generator=seeded())
    values = outputs(model, x)
    assert len(values) == 31
    for value in values.values():
        assert value.var(correction=0).item() == pytest.approx(1, abs=0.01)
    for layer in model[:60:2]:
        weight = layer.weight.detach()
        square = weight @ weight.T
        torch.testing.assert_close(square, torch.eye(20).double() * square[0, 0])
        assert not layer.bias.any()
    assert [one.names for one in report.initialized] == [(f"{2 * i}.weight",) for i in range(31)]
    assert report.initialized[3].after == pytest.approx(
        model[6].weight.std(correction=0).item(), rel=1e-12
    )


def test_a_residual_network_with_norms_in_training() -> None:
    model, x = resnet18(num_classes=4).double(), torch.randn(8, 3, 64, 64).double()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    state = torch.get_rng_state()
    lsuv_(model, x, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert model.training
    for value in outputs(model, x).values():
        assert value.var(correction=0).item() == pytest.approx(1, abs=0.01)


def test_what_it_keeps() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
            self.memory = nn.LSTM(4, 4)
            self.dead = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.memory(self.normed(self.frozen(self.used(x))))
            return y + self.dead(0 * x)  # type: ignore[no-any-return]

    model: Any = Branches()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = lsuv_(model, torch.randn(20, 4))
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"used.weight", "used.bias", "dead.weight", "dead.bias"}
    assert "no variance on the batch" in report.initialized[1].why
    reasons = {kept.names[0]: kept.reason for kept in report.kept}
    assert reasons["unused.weight"] == "the batch didn't reach it"
    assert reasons["frozen.weight"] == "frozen"
    assert reasons["normed.weight"] == "parametrised"
    assert reasons["memory.weight_ih_l0"] == "lsuv_ has no rule for LSTM"


def test_only_named_modules_and_shared_ones_once() -> None:
    shared = nn.Linear(6, 6)
    model: Any = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(6, 6))
    kept = model[3].weight.clone()
    x = torch.randn(100, 6)
    report = lsuv_(model, x, modules=["0"])
    assert [one.names for one in report.initialized] == [("0.weight", "2.weight")]
    assert torch.equal(model[3].weight, kept)
    assert shared(x).var(correction=0).item() == pytest.approx(1, abs=0.01)


def test_after_an_error_the_model_is_unchanged() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 5))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        lsuv_(model, torch.randn(3, 4))
    assert all(map(torch.equal, before, model.parameters()))
    with pytest.raises(ValueError, match="modules has to name modules of Sequential"):
        lsuv_(model, torch.randn(3, 4), modules=["nothing"])
    with pytest.raises(ValueError, match="has no shape yet"):
        lsuv_(nn.Sequential(nn.LazyLinear(4)), torch.randn(3, 4))
