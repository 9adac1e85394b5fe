"""``layer_norm`` and ``rms_norm`` over channels that lie before their pixels."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_kernels import layer_norm, rms_norm
from lightning_kernels._row_norm.operator import rows_of
from tests.kernels.reference import Function, assert_as_right_as_torch, run

SHAPES = [
    (3, 5, 2, 4),  # 8 pixels, the fewest that are read where they lie
    (2, 96, 7, 9),
    (1, 33, 5, 5),
    (2, 256, 4, 4),  # the most channels
    (2, 257, 4, 4),  # too many: copied
    (3, 6, 1, 7),  # too few pixels: copied
    (2, 16, 40),  # a sequence
    (2, 3, 16, 2, 3, 4),
    (2, 64, 1, 1),  # a row each, as it is
]

_EPS = 1e-5  # not the default of rms_norm, which is another one in float64


def channels_last(norm: str) -> tuple[Function, Function]:
    """Return our norm and torch's, of channels in dimension 1."""

    def ours(x: Tensor, *parameters: Tensor) -> Tensor:
        function: Any = layer_norm if norm == "layer_norm" else rms_norm
        y: Tensor = function(x.movedim(1, -1), (x.shape[1],), *parameters, eps=_EPS)
        return y

    def torchs(x: Tensor, *parameters: Tensor) -> Tensor:
        mixes = x.is_cpu and norm == "layer_norm"
        parameters = tuple(p if mixes else p.to(x.dtype) for p in parameters)
        y: Tensor = getattr(F, norm)(x.movedim(1, -1), [x.shape[1]], *parameters, eps=_EPS)
        return y

    return ours, torchs


def make(shape: tuple[int, ...], dtype: torch.dtype, device: str, norm: str) -> list[Tensor]:
    x = torch.randn(shape, device=device) * 2 + torch.randn(shape[0], *[1] * (len(shape) - 1)).to(
        device
    )
    count = 2 if norm == "layer_norm" else 1
    return [x.to(dtype), *(torch.randn(shape[1], device=device) for _ in range(count))]


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("norm", "dtype"),
    [
        ("layer_norm", torch.float32),
        ("layer_norm", torch.bfloat16),
        ("rms_norm", torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_right_as_torch(
    shape: tuple[int, ...], norm: str, dtype: torch.dtype, device: str
) -> None:
    def draw() -> tuple[list[Tensor | None], Tensor]:
        tensors = make(shape, dtype, device, norm)
        return [*tensors], torch.randn_like(tensors[0]).movedim(1, -1).contiguous()

    ours, torchs = channels_last(norm)
    assert_as_right_as_torch(ours, torchs, draw)


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_what_rows_are(shape: tuple[int, ...], device: str) -> None:
    x, *parameters = make(shape, torch.float32, device, "layer_norm")
    grad = torch.randn_like(x).movedim(1, -1).contiguous()
    ours = channels_last("layer_norm")[0]
    rows = run(
        lambda x, w, b: layer_norm(x, (shape[1],), w, b, _EPS),
        (x.movedim(1, -1).contiguous(), *parameters),
        grad,
    )
    y, grad_x, *rest = run(ours, (x, *parameters), grad)
    assert y.is_contiguous()
    torch.testing.assert_close(y, rows[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad_x.movedim(1, -1), rows[1], rtol=1e-5, atol=1e-5)
    for mine, right in zip(rest, rows[2:], strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "index", "copied"),
    [
        ((4, 6, 3, 4), (slice(None), slice(None), slice(None)), False),
        ((4, 6, 3, 4), (slice(None, None, 2), slice(1, 5), slice(1, None)), False),  # 8 pixels
        ((4, 6, 8, 4), (slice(None), slice(None, None, 2), slice(None, None, 2)), True),
        ((4, 300, 3, 4), (slice(None), slice(0, 200), slice(None)), False),
        ((4, 300, 3, 4), (slice(None),), True),
    ],
)
def test_views_are_read_where_they_lie(
    shape: tuple[int, ...], index: tuple[slice, ...], copied: bool, device: str
) -> None:
    images = torch.randn(shape, device=device)[index]
    x = images.movedim(1, -1)
    read, _ = rows_of(x, x.shape[-1])
    assert (read.data_ptr() != x.data_ptr()) == copied
    weight, bias = (torch.randn(x.shape[-1], device=device) for _ in range(2))
    y = layer_norm(x, (x.shape[-1],), weight, bias)
    expected = layer_norm(x.contiguous(), (x.shape[-1],), weight, bias)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


def test_a_bad_pixel_stays_that_pixel(device: str) -> None:
    x, *parameters = make((2, 6, 4, 5), torch.float32, device, "layer_norm")
    grad = torch.randn(2, 4, 5, 6, device=device)
    ours = channels_last("layer_norm")[0]
    clean = run(ours, (x, *parameters), grad)[:2]
    x[1, 3, 2, 2] = torch.nan
    y, grad_x, *_ = run(ours, (x, *parameters), grad)
    assert y[1, 2, 2].isnan().all()
    others = torch.ones(2, 4, 5, dtype=torch.bool, device=device)
    others[1, 2, 2] = False
    assert torch.equal(y[others], clean[0][others])
    assert torch.equal(grad_x.movedim(1, -1)[others], clean[1].movedim(1, -1)[others])


def test_an_empty_batch(device: str) -> None:
    x, *parameters = make((0, 6, 4, 4), torch.float32, device, "layer_norm")
    ours = channels_last("layer_norm")[0]
    y, grad_x, grad_weight, _ = run(ours, (x, *parameters), torch.empty(0, 4, 4, 6, device=device))
    assert (y.shape, grad_x.shape) == ((0, 4, 4, 6), x.shape)
    assert torch.equal(grad_weight, torch.zeros(6, device=device))
