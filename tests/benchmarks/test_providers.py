"""The adapters of other packages, called as those packages' own signatures have it."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.correctness import PEER_FACTOR, Float64, check_dropout
from benchmarks.ops import DTYPES, OPS
from benchmarks.providers import COMPILED, Provider


def native(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, rstd = torch.native_layer_norm(x, [x.shape[-1]], weight, bias, eps)
    return y, mean.reshape(-1), rstd.reshape(-1)


def native_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, ...]:
    rows = (x.shape[0], 1)
    results: tuple[Tensor, ...] = torch.ops.aten.native_layer_norm_backward(
        grad, x, [x.shape[-1]], mean.reshape(rows), rstd.reshape(rows), weight, bias, [True] * 3
    )
    return results


def liger() -> dict[str, Any]:
    """Return the norms of liger-kernel 0.8.5."""

    def liger_layer_norm(X: Tensor, W: Tensor, B: Tensor, eps: float) -> Tensor:  # noqa: N803
        return F.layer_norm(X, X.shape[-1:], W, B, eps)

    def liger_rms_norm(
        X: Tensor,  # noqa: N803
        W: Tensor,  # noqa: N803
        eps: float,
        offset: float = 0.0,
        casting_mode: str = "llama",
        in_place: bool = True,
    ) -> Tensor:
        assert not in_place  # which would change the caller's gradient
        return F.rms_norm(X, X.shape[-1:], W + offset, eps)

    functions = {"liger_layer_norm": liger_layer_norm, "liger_rms_norm": liger_rms_norm}
    return {"liger_kernel.transformers.functional": functions}


def quack() -> dict[str, Any]:
    """Return the norms of quack-kernels 0.6.5, which takes matrices and float32 parameters only."""

    def layernorm_fwd(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        eps: float = 1e-6,
        return_rstd: bool = False,
        return_mean: bool = False,
    ) -> Any:
        assert x.dim() == 2
        assert bias is not None
        assert weight.dtype == bias.dtype == torch.float32
        y, mean, rstd = native(x, weight.to(x.dtype), bias.to(x.dtype), eps)
        assert return_rstd
        assert return_mean
        return y, rstd, mean

    def layernorm_bwd(
        x: Tensor,
        weight: Tensor,
        dout: Tensor,
        rstd: Tensor,
        mean: Tensor,
        has_bias: bool = True,
    ) -> tuple[Tensor, ...]:
        assert x.dim() == 2
        narrow = weight.to(x.dtype)
        dx, dw, db = native_backward(dout, x, mean, rstd, narrow, narrow)
        return dx, dw.float(), db.float()

    def rmsnorm(x: Tensor, weight: Tensor | None = None, *_: Any, eps: float = 1e-6) -> Tensor:
        assert x.dim() == 2
        assert weight is not None
        assert weight.dtype == torch.float32
        return F.rms_norm(x.float(), x.shape[-1:], weight, eps).to(x.dtype)

    passes = {"layernorm_fwd": layernorm_fwd, "layernorm_bwd": layernorm_bwd}
    return {"quack.rmsnorm": {**passes, "rmsnorm": rmsnorm}}


def gems() -> dict[str, Any]:
    """Return the ops of flag-gems 5.0.2, whose backward takes the first dimension for the rows."""

    def layer_norm(
        input: Tensor, normalized_shape: Any, weight: Tensor, bias: Tensor, eps: float = 1e-5
    ) -> tuple[Tensor, ...]:
        return native(input, weight, bias, eps)

    def layer_norm_backward(
        grad_out: Tensor,
        input: Tensor,
        normalized_shape: Any,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor,
        bias: Tensor,
        output_mask: Any = None,
    ) -> tuple[Tensor, ...]:
        assert list(output_mask) == [True] * 3
        return native_backward(grad_out, input, mean, rstd, weight, bias)

    def dropout(input: Tensor, p: float, train: bool = True) -> tuple[Tensor, Tensor]:
        assert train
        return torch.native_dropout(input, p, train)

    def dropout_backward(grad_output: Tensor, mask: Tensor, scale: float) -> Tensor:
        return grad_output * mask * scale

    functions = layer_norm, layer_norm_backward, dropout, dropout_backward
    return {"flag_gems": {function.__name__: function for function in functions}}


PACKAGES = {"liger-kernel": liger, "quack-kernels": quack, "flag-gems": gems}
FOREIGN = [
    pytest.param(name, peer, id=f"{name}-{peer.name}")
    for name, op in OPS.items()
    for peer in op.peers
    if peer.name in PACKAGES
]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in PACKAGES.values():
        for name, functions in package().items():
            module = ModuleType(name)
            vars(module).update(functions)
            while name:  # and the packages that it is in
                monkeypatch.setitem(sys.modules, name, module)
                name, _, _ = name.rpartition(".")
                module = ModuleType(name)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "provider"), FOREIGN)
def test_adapters_compute_the_op_and_its_gradients(
    name: str, provider: Provider, dtype: str
) -> None:
    op = OPS[name]
    inputs = op.draw((6, 50, 96), "contiguous", DTYPES[dtype], torch.device("cpu"))
    grad = torch.randn_like(inputs[0])
    own = provider.prepare(inputs)
    if op.drop_rate is not None:
        verdict = check_dropout(provider.make(), own, grad, op.drop_rate)
    else:
        exact = Float64(op.eager, inputs, grad)
        verdict = exact.check(provider.make(), own, grad, PEER_FACTOR)
    assert verdict.reason is None


@pytest.mark.parametrize(("name", "provider"), FOREIGN)
def test_a_package_that_is_not_there_is_known_by_its_error(
    name: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("liger_kernel", "quack", "flag_gems"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError):
        provider.make()


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_functions_keep_their_graph_for_another_backward(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._functorch import config

    modes: list[Any] = []

    def compile(function: Any, **options: Any) -> Any:
        modes.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    with config.patch(donated_buffer=True):
        for op in OPS.values():
            for provider in op.providers:
                if provider.name == name:
                    provider.make()
        assert config.donated_buffer is False
    differentiable = [op for op in OPS.values() if "backward" in op.directions]
    assert len(modes) == len(differentiable)
    assert {options["mode"] for options in modes} == {COMPILED[name]}
    assert all(options["fullgraph"] and options["dynamic"] is False for options in modes)
