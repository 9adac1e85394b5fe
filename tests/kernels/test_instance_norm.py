"""``lightning_kernels.instance_norm`` on whichever route this run has."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_kernels import instance_norm
from tests.kernels.group_norms import ACTIVATIONS, LAST, LAST_3D, Layout, check, make
from tests.kernels.reference import run


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((3, 7, 50), None),
        ((2, 5, 13, 9), None),
        ((2, 5, 13, 9), LAST),
        ((1, 3, 130, 128), None),
        ((1, 3, 130, 128), LAST),
        ((2, 6, 3, 4, 5), LAST_3D),
    ],
    ids=str,
)
def test_as_right_as_torch(
    shape: tuple[int, ...], layout: Layout, activation: str | None, device: str
) -> None:
    check(shape, None, layout, device, activation=activation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [None, LAST], ids=str)
def test_types(dtype: torch.dtype, layout: Layout, device: str) -> None:
    check((4, 12, 6, 5), None, layout, device, dtype)


def test_parameters_of_different_types(device: str) -> None:
    x, weight, bias = make((3, 6, 5), dtype=torch.bfloat16, device=device)
    y = instance_norm(x, None, None, weight, bias.bfloat16())
    right = F.instance_norm(x.double(), None, None, weight.double(), bias.bfloat16().double())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), right, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("uses_input", [True, False])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("layout", [None, LAST], ids=str)
def test_running_statistics_are_torchs(
    layout: Layout, activation: str | None, uses_input: bool, device: str
) -> None:
    tensors = make((3, 4, 5, 6), layout, device=device)
    grad = torch.randn(3, 4, 5, 6, device=device)
    results = []
    for function in (instance_norm, F.instance_norm):
        running = [torch.linspace(0.5, 1.5, 4, device=device) for _ in range(2)]

        def call(x: Tensor, w: Tensor, b: Tensor, f: Any = function, r: Any = running) -> Any:
            if f is instance_norm:
                return instance_norm(
                    x, r[0], r[1], w, b, uses_input, 0.3, 1e-3, activation=activation
                )
            y = F.instance_norm(x, r[0], r[1], w, b, uses_input, 0.3, 1e-3)
            return ACTIVATIONS[activation](y) if activation else y

        results.append([*run(call, tensors, grad), *running])
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)
    assert torch.equal(results[0][-1], torch.linspace(0.5, 1.5, 4, device=device)) != uses_input


@pytest.mark.parametrize("tracks", [False, True])
def test_the_layout_is_kept(tracks: bool, device: str) -> None:
    x = torch.randn(2, 6, 5, 4, device=device).contiguous(memory_format=LAST)
    running = torch.ones(2, 6, device=device).unbind() if tracks else (None, None)
    assert instance_norm(x, *running, activation="relu").stride() == x.stride()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input": torch.ones(2, 4, 1, 1)}, ValueError, "more than 1 spatial element"),
        ({"input": torch.ones(2, 4)}, ValueError, r"\(N, C, \*\).*\[2, 4\]"),
        ({"use_input_stats": False}, RuntimeError, "running_mean and running_var"),
        ({"running_var": torch.ones(4)}, ValueError, "both running_mean and running_var"),
        ({"weight": torch.ones(3)}, RuntimeError, r"instance_norm expects weight.*\[4\].*\[3\]"),
        ({"input": torch.ones(2, 4, 3).int()}, NotImplementedError, "floating.*int32"),
        ({"activation": "tanh"}, ValueError, "'tanh'"),
    ],
    ids=str,
)
def test_bad_arguments(
    arguments: dict[str, Any], error: type[Exception], message: str, device: str
) -> None:
    valid = {"input": torch.randn(2, 4, 3)}
    call: dict[str, Any] = {
        k: v.to(device) if isinstance(v, Tensor) else v for k, v in (valid | arguments).items()
    }
    with pytest.raises(error, match=message):
        instance_norm(**call)
