"""The audit: its statistics, and the model as it was."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from lightning_practices.init import audit, initialize

pytestmark = pytest.mark.plain


def stack(activation: type[nn.Module], depth: int = 10, width: int = 100) -> nn.Sequential:
    return nn.Sequential(
        *[each for _ in range(depth) for each in (nn.Linear(width, width), activation())]
    ).double()


def batch(width: int = 100) -> Tensor:
    return torch.randn(64, width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_statistics_of_each_layer() -> None:
    model: Any = stack(nn.Tanh, 3)
    x = batch()
    initialize(model, generator=torch.Generator().manual_seed(0))
    result = audit(model, x)
    outputs, hidden = [], x.clone().requires_grad_()
    y = hidden
    for module in model:
        y = module(y)
        if isinstance(module, nn.Tanh):
            outputs.append(y)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).double()
    gradients = [*torch.autograd.grad(y, outputs[:-1], noise), noise]
    assert [layer.name for layer in result.layers] == ["0", "2", "4"]
    assert result.input_std == pytest.approx(x.std(correction=0).item(), rel=1e-12)
    for layer, value, gradient in zip(result.layers, outputs, gradients, strict=True):
        assert layer.activation == "tanh"
        std = value.std(correction=0).item()
        assert layer.mean == pytest.approx(value.mean().item(), rel=1e-9, abs=1e-15)
        assert layer.std == pytest.approx(std, rel=1e-12)
        assert layer.ratio == pytest.approx(std / result.input_std, rel=1e-12)
        assert layer.gradient_std == pytest.approx(gradient.std(correction=0).item(), rel=1e-9)
        flat = (1 - value.square() < 0.05).double().mean().item()
        assert layer.saturated == pytest.approx(flat, rel=1e-12)
        assert layer.dead == 0
        counts = torch.histc(value.detach(), len(layer.histogram), -1, 1)
        assert layer.histogram == tuple(counts.tolist())
        assert (layer.low, layer.high) == (-1, 1)


@pytest.mark.parametrize("std", [0.01, 1.0])
def test_the_lectures_two_bad_starts(std: float) -> None:
    model: Any = stack(nn.Tanh)
    for p in model.parameters():
        nn.init.normal_(p, 0, std, generator=torch.Generator().manual_seed(1))
    first, *_, last = audit(model, batch()).layers
    if std == 1.0:  # saturated, and gradients explode or vanish
        assert last.saturated > 0.7
        assert last.std > 0.9
        assert first.gradient_std > 100 * last.gradient_std
    else:
        assert first.std < 0.15
        assert last.std < 0.02
        assert last.saturated == 0
        assert first.gradient_std < 1e-6 * last.gradient_std


def test_dead_units() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Conv1d(5, 2, 1), nn.ReLU())
    with torch.no_grad():
        model[0].bias[:3] = torch.tensor([-100.0, 100.0, -100.0])
        model[2].weight.abs_()
        model[2].bias[:] = torch.tensor([0.0, -1000.0])
    first, last = audit(model, torch.randn(8, 5, 4)).layers
    assert first.dead == 0.5
    assert last.dead == 0.5
    assert math.isnan(first.saturated)


def test_in_place_activations_and_additions() -> None:
    class Adding(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.layer, self.relu = nn.Linear(5, 5), nn.ReLU(inplace)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.relu(self.layer(x)) + x
            if self.relu.inplace:
                y += x
                return y.mul_(3)
            return (y + x) * 3

    results = []
    for inplace in (True, False):
        model: Any = nn.Sequential(Adding(inplace), Adding(inplace)).double()
        initialize(model, generator=torch.Generator().manual_seed(0))
        results.append(audit(model, batch(5)).layers)
    assert results[0] == results[1]


def snapshot(model: nn.Module) -> list[Any]:
    """Return all that must not change, as bytes and ids."""
    seen: list[Any] = [torch.get_rng_state().numpy().tobytes()]
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        seen.append((name, id(value), value.detach().numpy().tobytes(), value.requires_grad))
        grad = value.grad
        seen.append(None if grad is None else (id(grad), grad.numpy().tobytes()))
        seen.append(None if value._backward_hooks is None else len(value._backward_hooks))
    for name, module in model.named_modules():
        hooks = [len(h) for key, h in sorted(vars(module).items()) if key.endswith("hooks")]
        seen.append((name, module.training, hooks))
    return seen


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("has_gradients", [True, False])
def test_the_model_is_as_before_bit_for_bit(training: bool, has_gradients: bool) -> None:
    model: Any = nn.Sequential(resnet18(num_classes=5), nn.Dropout(0.5)).train(training)
    model[0].layer2.eval()
    model[0].conv1.weight.requires_grad_(False)
    x = torch.randn(2, 3, 32, 32)
    if has_gradients:
        model(x).sum().backward()
    before, of_x = snapshot(model), x.clone()
    result = audit(model, x)
    assert snapshot(model) == before
    assert torch.equal(x, of_x)
    assert x.grad is None
    assert not x.requires_grad
    assert len(result.layers) == 21
    assert audit(model, x).layers == result.layers  # the noise is the same in each call
    broken = nn.Sequential(model, nn.Linear(7, 7))
    before = snapshot(broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        audit(broken, x)
    assert snapshot(broken) == before


def test_dropout_is_off_and_batch_norms_use_the_batch() -> None:
    model: Any = nn.Sequential(nn.Linear(9, 9), nn.BatchNorm1d(9), nn.Dropout(0.9), nn.Tanh())
    nn.init.constant_(model[1].running_mean, 100.0)
    (layer,) = audit(model, 3 * torch.randn(50, 9)).layers
    assert layer.mean == pytest.approx(0, abs=0.05)
    assert layer.std == pytest.approx(0.63, abs=0.05)
    model.eval()
    (layer,) = audit(model, 3 * torch.randn(50, 9)).layers
    assert layer.mean == pytest.approx(-1, abs=1e-6)


def test_tokens_and_frozen_models() -> None:
    model: Any = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 6), nn.ReLU()).requires_grad_(
        False
    )
    first, second = audit(model, torch.randint(0, 10, (4, 3))).layers
    assert (first.name, second.name) == ("0", "1")
    assert first.ratio == 1
    assert second.ratio == pytest.approx(second.std / first.std)
    assert math.isnan(first.gradient_std)


def test_a_tied_layer_has_one_row() -> None:
    layer = nn.Linear(4, 4)
    assert [one.name for one in audit(nn.Sequential(layer, nn.Tanh(), layer), batch(4)
                                      .float()).layers] == ["0"]  # fmt: skip


def test_the_table_and_the_picture(tmp_path: Path) -> None:
    result = audit(stack(nn.Tanh, 14, 8), batch(8))
    assert repr(result) == "Audit(14 layers)"
    text = str(result)
    for part in ("gradient std", "saturated", "tanh", "26"):
        assert part in text
    for name in ("audit.png", "audit.svg"):
        result.plot(tmp_path / name)
    assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "audit.svg").read_text().count("<!-- tanh -->") == 12
    with pytest.raises(TypeError, match="path has to be the path of a picture"):
        result.plot(3)  # type: ignore[arg-type]


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="has no shape yet"):
        audit(nn.Sequential(nn.LazyLinear(3)), torch.ones(2, 2))
    with pytest.raises(TypeError, match=r"model has to be a torch\.nn\.Module, but got 3"):
        audit(3, torch.ones(2))  # type: ignore[arg-type]
