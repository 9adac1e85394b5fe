import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from lightning_practices.nn._dropout import AlphaDropout, Dropout
from lightning_practices.surgery import fuse, unfuse
from tests import processes

LAYERS = [Dropout, AlphaDropout]
ROWS, WIDTH = 64, 32


def scheduled(kind: type[Dropout | AlphaDropout], p: float, device: str = "cpu") -> Any:
    layer = kind(p)
    layer.schedule_rate(device)
    return layer


def share_dropped(layer: Any, device: str = "cpu") -> float:
    """Return the share of ones that ``layer``, or a model of it, drops: those not above 0 then."""
    y: Tensor = layer(torch.ones(ROWS, WIDTH, device=device))
    return (y <= 0).double().mean().item()


def near(p: float) -> Any:
    """Return what a share of independent draws at ``p`` is, but once in two million."""
    return pytest.approx(p, abs=5 * (p * (1 - p) / (ROWS * WIDTH)) ** 0.5)


def through_torch_save(layer: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_pickle(layer: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(layer))


@pytest.mark.parametrize("kind", LAYERS)
def test_the_assigned_rate_decides(kind: type[Dropout], device: str) -> None:
    layer = kind(0.2)
    layer.p = 0.6
    assert share_dropped(layer, device) == near(0.6)
    layer.schedule_rate(device)
    assert layer.current_rate() is layer.rate
    for p in (0.6, 0.0, 0.9, 1.0, 0.3):
        if p != 0.6:
            layer.p = p
        assert layer.p == p
        assert share_dropped(layer, device) == near(p)
    x = torch.ones(4)
    assert layer.eval()(x) is x


def test_the_scale_is_of_the_scheduled_rate(device: str) -> None:
    layer = scheduled(Dropout, 0.5, device)
    x = 1 + torch.rand(ROWS, WIDTH, device=device)
    x.requires_grad_()
    for p in (0.25, 0.75):
        layer.p = p
        y = layer(x)
        (grad,) = torch.autograd.grad(y.sum(), x)
        kept = y != 0
        # Powers of two: exact in float32.
        assert torch.equal(grad[kept], torch.full_like(grad[kept], 1 / (1 - p)))
        assert not grad[~kept].any()
        exact = x.double()[kept] / (1 - p)
        assert (y[kept].double() - exact).abs().max() <= torch.finfo(x.dtype).eps * exact.max()


def test_a_number_until_scheduled() -> None:
    layer = Dropout(0.25)
    assert layer.rate is None
    assert layer.current_rate() == 0.25
    assert vars(layer) == vars(nn.Dropout(0.25))


def test_nothing_else_is_seen_of_the_tensor() -> None:
    layer, theirs = scheduled(Dropout, 0.25), nn.Dropout(0.25)
    assert not layer.state_dict()
    assert not list(layer.buffers())
    assert not list(layer.parameters())
    assert repr(layer) == repr(theirs)
    layer.p = 0.5
    assert repr(layer) == repr(nn.Dropout(0.5))
    layer.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch_save])
def test_copies_have_a_rate_of_their_own(copied: Callable[[nn.Module], Any], device: str) -> None:
    layer = scheduled(Dropout, 0.2, device)
    layer.p = 0.8
    twin = copied(layer)
    twin.p = 0.1
    assert (layer.p, layer.rate.item()) == (0.8, pytest.approx(0.8))
    assert twin.rate.item() == pytest.approx(0.1)
    assert share_dropped(layer, device) == near(0.8)
    assert share_dropped(twin, device) == near(0.1)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_rate_that_none_could_refuse_later_raises_at_once(p: float) -> None:
    layer = scheduled(Dropout, 0.2)
    with pytest.raises(ValueError, match=f"p has to be a number between 0 and 1, but got {p}"):
        layer.p = p
    assert layer.p == 0.2
    assert layer.rate.item() == pytest.approx(0.2)


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_the_tensor_stays_float32_and_exact(convert: Callable[[nn.Module], Any]) -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2), scheduled(Dropout, 0.1))
    rate = scheduled(Dropout, 0.1).rate
    convert(model)
    assert model[1].rate.dtype == torch.float32
    assert model[1].rate.item() == rate.item()
    assert model[0].weight.dtype != torch.float32


def test_conversions_that_change_nothing_keep_its_place_in_memory() -> None:
    model = nn.Sequential(nn.Linear(2, 2), scheduled(Dropout, 0.1))
    rate: Any = model[1].rate
    model.to("cpu").float().requires_grad_(False)
    model[1].schedule_rate("cpu")  # type: ignore[operator]
    model[1].schedule_rate()  # type: ignore[operator]
    assert model[1].rate is rate


def test_from_the_meta_device_to_a_real_one() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), Dropout(0.1))
        model[1].schedule_rate()  # type: ignore[operator]
    layer: Any = model[1]
    assert layer.rate.device.type == "meta"
    layer.p = 0.7
    model.to_empty(device="cpu")
    assert layer.rate.item() == pytest.approx(0.7)
    assert share_dropped(layer) == near(0.7)


def test_scheduling_again_moves_it() -> None:
    layer = scheduled(Dropout, 0.1)
    layer.schedule_rate("meta")
    assert layer.rate.device.type == "meta"


@pytest.mark.gpu
def test_the_tensor_follows_the_layer(device: str) -> None:
    model = nn.Sequential(scheduled(Dropout, 0.3)).to(device)
    assert share_dropped(model[0], device) == near(0.3)
    model.cpu()
    assert share_dropped(model[0]) == near(0.3)


@pytest.mark.gpu
def test_a_captured_graph_sees_the_rate(device: str) -> None:
    layer = scheduled(Dropout, 0.5, device)
    x = torch.ones(ROWS, WIDTH, device=device)
    layer(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    for p in (0.0, 0.3, 1.0):
        layer.p = p
        graph.replay()
        assert (y == 0).double().mean().item() == near(p)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_compiled_model_is_not_compiled_again(kind: type[Dropout], device: str) -> None:
    torch.compiler.reset()
    layer = scheduled(kind, 0.5, device)
    model = torch.compile(nn.Sequential(nn.Identity(), layer), backend="aot_eager", fullgraph=True)
    share_dropped(model, device)
    with torch.compiler.set_stance("fail_on_recompile"):
        for p in (0.1, 0.0, 0.8):
            layer.p = p
            assert share_dropped(model, device) == near(p)


def test_a_number_is_compiled_again() -> None:
    """Without which the test above would prove nothing."""
    torch.compiler.reset()
    layer = Dropout(0.5)
    model = torch.compile(nn.Sequential(nn.Identity(), layer), backend="aot_eager")
    model(torch.ones(4))
    layer.p = 0.1
    with (
        torch.compiler.set_stance("fail_on_recompile"),
        pytest.raises(RuntimeError, match="fail_on_recompile"),
    ):
        model(torch.ones(4))


def averaged(model: nn.Module, batches: list[Tensor]) -> Any:
    """Return the average of ``model`` over ``batches``, scheduled (if it can be) in between."""
    average = AveragedModel(model, use_buffers=True)
    for module in model.modules():
        if isinstance(module, Dropout):
            module.schedule_rate()
    for x in batches:
        model(x)
        average.update_parameters(model)
    return average.module


def test_averaged_models_pair_the_same_buffers() -> None:
    def build(kind: Callable[[float], nn.Module]) -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(4), kind(0.0), nn.BatchNorm1d(4))

    batches = [torch.randn(8, 4) for _ in range(3)]
    expected, actual = averaged(build(nn.Dropout), batches), averaged(build(Dropout), batches)
    for name, value in expected.state_dict().items():
        assert torch.equal(actual.state_dict()[name], value), name


def test_a_class_that_was_changed_in_between() -> None:
    model: Any = nn.Sequential(nn.Dropout(0.2))
    fuse(model)
    model[0].schedule_rate()
    unfuse(model)
    model[0].p = 0.9
    fuse(model)
    model[0].schedule_rate()
    assert share_dropped(model[0]) == near(0.9)


def rate_after_a_step(rank: int, before: bool) -> float:
    """Run a wrapped model whose rate differs from rank to rank, and return it."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), Dropout(0.5))
    layer: Any = model[2]
    if before:
        layer.schedule_rate()
    wrapped = DistributedDataParallel(model)
    layer.schedule_rate()
    layer.p = 0.25 + 0.5 * rank
    wrapped(torch.randn(4, 2)).sum().backward()
    rate: float = layer.rate.item()
    return rate


def test_ddp_leaves_the_rate_to_its_rank() -> None:
    for before in (True, False):
        rates = processes.run(rate_after_a_step, [(rank, before) for rank in range(2)])
        assert rates == [0.25, 0.75]
