"""Which tensors the kernels serve, and that every other one gets a right answer from ATen."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_kernels
from lightning_kernels import route

FORMER = "import os, sys, torch; sys.modules['triton'] = None; import lightning_kernels as lk; "


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_kernels_serve(dtype: torch.dtype, device: str) -> None:
    x = torch.ones(4, 6, device=device, dtype=dtype)
    for tensor in (x, x.T, x.requires_grad_(), torch.nn.Parameter(x.detach())):
        assert route(tensor) == ("triton" if device == "cuda" else "interpreter")


def test_aten_serves_the_rest(device: str) -> None:
    x = torch.ones(4, 6, device=device)
    for tensor in (x.double(), x.int(), x.bool(), x[:0], x.to_sparse(), x.to(torch.complex64)):
        assert route(tensor) == "aten", tensor
    assert route(torch.ones(3, device="meta")) == "aten"
    assert route(torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged)) == "aten"
    with torch.autograd.forward_ad.dual_level():
        assert route(x) == "aten"
    inside: list[str] = []

    def look(row: Tensor) -> Tensor:
        inside.append(route(row))
        return row

    torch.func.vmap(look)(x)
    assert inside == ["aten"]


def test_float64_is_computed_in_float64(device: str) -> None:
    x = torch.rand(50, 8, device=device, dtype=torch.float64) + 1
    y = lightning_kernels.dropout(x, 0.1)
    torch.testing.assert_close(y[y != 0], (x / 0.9)[y != 0], rtol=1e-15, atol=0)


def test_a_dispatch_mode_sees_the_operators(device: str) -> None:
    seen: list[str] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(  # type: ignore[no-untyped-def]
            self, func, types, args=(), kwargs=None
        ) -> object:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x = torch.randn(4, 8, device=device)
    expected = "aten.native_layer_norm.default"
    if route(x) != "aten":
        expected = "lightning_kernels.row_norm.default"
    with Spy():
        lightning_kernels.layer_norm(x, (8,))
    assert expected in seen


@pytest.mark.plain
@pytest.mark.parametrize("interpret", ["0", "1"])
def test_without_triton_everything_runs_on_aten(interpret: str) -> None:
    code = FORMER + (
        "x = torch.randn(4, 8, requires_grad=True); assert lk.route(x) == 'aten'; "
        "y = lk.dropout(lk.layer_norm(x, (8,)), 0.5); y.sum().backward(); "
        "assert x.grad.shape == x.shape; rate = torch.tensor(0.5); "
        "assert lk.alpha_dropout(x, rate, training=True).shape == x.shape; "
        "lk.clip_grad_norm_(x, 0.1); assert x.grad.norm() < 0.11; "
        "lk.clip_grad_adaptive_(x); maps = x.detach().reshape(1, 1, 4, 8); "
        "assert lk.drop_block2d(maps, rate, 2).shape == maps.shape; "
        "assert lk.dropout2d(maps, rate).shape == lk.dropout_activation(maps, 'gelu', rate).shape; "
        "lk.stochastic_depth(x, rate, 'row', residual=x); "
        "lk.batch_norm(x, None, None, training=True, activation='relu')"
    )
    path = os.pathsep.join(sys.path)  # the package of this run, even if another one is installed
    environment = {"TRITON_INTERPRET": interpret, "PATH": "", "PYTHONPATH": path}
    ended = subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True
    )
    warned = "TRITON_INTERPRET is set, but there is no Triton" in ended.stderr
    assert warned == (interpret == "1"), ended.stderr


@pytest.mark.gpu
def test_a_launch_finds_its_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    x = torch.randn(4, 8, device="cuda:1", requires_grad=True)
    assert torch.cuda.current_device() == 0
    y = lightning_kernels.layer_norm(x, (8,))
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (8,)))
    y.sum().backward()
