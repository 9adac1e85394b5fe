import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_kernels
from lightning_practices.nn import LayerNorm

CONSTRUCTORS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((32,), {}),
    (([4, 8],), {"eps": 1e-3}),
    ((torch.Size([32]), 1e-6), {"bias": False}),
    ((32,), {"elementwise_affine": False}),
    ((32,), {"dtype": torch.float64, "device": "cpu"}),
    ((32, 1e-5, True, True, "meta", torch.bfloat16), {}),
]


def randomise(layer: nn.Module) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()


def twins(*args: Any, **kwargs: Any) -> tuple[nn.LayerNorm, LayerNorm]:
    """Return torch's layer and ours, with the same parameters."""
    theirs, ours = nn.LayerNorm(*args, **kwargs), LayerNorm(*args, **kwargs)
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def run(layer: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Return the output and the gradients of the input and the parameters."""
    x = x.detach().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], grad)]


@pytest.mark.parametrize(("args", "kwargs"), CONSTRUCTORS)
def test_is_built_printed_and_saved_like_torchs(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    theirs, ours = nn.LayerNorm(*args, **kwargs), LayerNorm(*args, **kwargs)
    assert isinstance(ours, nn.LayerNorm)
    assert repr(ours) == repr(theirs)
    assert vars(ours).keys() == vars(theirs).keys()
    assert (ours.normalized_shape, ours.eps) == (theirs.normalized_shape, theirs.eps)
    kinds = [
        {name: (p.dtype, p.device, p.requires_grad) for name, p in layer.named_parameters()}
        for layer in (ours, theirs)
    ]
    assert kinds[0] == kinds[1]
    if not any(p.is_meta for p in theirs.parameters()):
        for source, target in ((theirs, ours), (ours, theirs)):
            randomise(source)
            target.load_state_dict(source.state_dict(), strict=True)
            for name, tensor in source.state_dict().items():
                assert torch.equal(tensor, target.state_dict()[name])


def test_forward_is_the_fused_function(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(lightning_kernels, "layer_norm", lambda *args, **_: calls.append(args))
    layer, x = LayerNorm((4, 8), eps=1e-3, bias=False), torch.randn(2, 4, 8)
    layer(x)
    ((given, shape, weight, bias, eps),) = calls
    assert given is x
    assert weight is layer.weight
    assert (shape, bias, eps) == ((4, 8), None, 1e-3)


@pytest.mark.parametrize(("args", "kwargs"), CONSTRUCTORS[:4])
def test_float64_is_torchs_bit_for_bit(
    args: tuple[Any, ...], kwargs: dict[str, Any], device: str
) -> None:
    theirs, ours = twins(*args, **kwargs, dtype=torch.float64, device=device)
    x = 1e3 + torch.randn(3, *theirs.normalized_shape, dtype=torch.float64, device=device)
    grad = torch.randn_like(x)
    for actual, expected in zip(run(ours, x, grad), run(theirs, x, grad), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("args", "kwargs"), CONSTRUCTORS[:4])
def test_is_as_near_to_float64_as_torchs(
    args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype, device: str
) -> None:
    theirs, ours = twins(*args, **kwargs, dtype=dtype, device=device)
    x = torch.randn(4, *theirs.normalized_shape, dtype=dtype, device=device)
    grad = torch.randn_like(x)
    exact = run(copy.deepcopy(theirs).double(), x.double(), grad.double())
    for actual, expected, truth in zip(
        run(ours, x, grad), run(theirs, x, grad), exact, strict=True
    ):
        assert actual.dtype == expected.dtype
        rounding = torch.finfo(dtype).eps * truth.abs().max()
        error, allowed = (actual - truth).abs().max(), (expected - truth).abs().max()
        assert error <= 1.5 * allowed + rounding


def test_autocast_keeps_the_inputs_type(device: str) -> None:
    theirs, ours = twins(32, device=device)
    x = torch.randn(4, 32, dtype=torch.bfloat16, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = ours(x)
    exact = theirs(x.float())
    assert y.dtype == torch.bfloat16
    assert (y - exact).abs().max() <= torch.finfo(y.dtype).eps * exact.abs().max()


def test_nan_stays_in_its_row(device: str) -> None:
    layer = LayerNorm(32, device=device)
    x = torch.randn(4, 32, device=device)
    clean = layer(x)
    x[1, 5] = torch.nan
    y = layer(x)
    assert y[1].isnan().all()
    assert torch.equal(y[[0, 2, 3]], clean[[0, 2, 3]])


def test_wrong_input_raises_and_leaves_the_layer_working(device: str) -> None:
    layer = LayerNorm(32, device=device)
    x = torch.randn(4, 32, device=device)
    before = layer(x)
    with pytest.raises(RuntimeError, match="normalized_shape"):
        layer(x[:, :31])
    with pytest.raises(RuntimeError, match=r"(?i)int|long"):
        layer(x.long())
    assert torch.equal(layer(x), before)


def test_damaged_checkpoint_names_its_keys_and_leaves_the_layer_working(device: str) -> None:
    layer = LayerNorm(32, device=device)
    x = torch.randn(4, 32, device=device)
    before = layer(x)
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*bias.*Unexpected.*scale"):
        layer.load_state_dict({"weight": layer.weight.detach(), "scale": torch.ones(32)})
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_copies_keep_class_state_and_output(copied: str, device: str) -> None:
    layer = LayerNorm(32, eps=1e-3, device=device).eval()
    randomise(layer)
    x = torch.randn(4, 32, device=device)
    if copied == "deepcopy":
        twin = copy.deepcopy(layer)
    elif copied == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    else:
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert type(twin) is LayerNorm
    assert twin.weight is not layer.weight
    assert not twin.training
    assert torch.equal(twin(x), layer(x))
