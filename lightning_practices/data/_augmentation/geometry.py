"""Flips, affine transforms and crops of a batch, with parameters of its own for each sample."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F  # noqa: N812

Draws = dict[str, Tensor]  # torchvision's parameters by name, each with a row for each sample


def uniform(count: int, bounds: Sequence[float], generator: torch.Generator) -> Tensor:
    """Return numbers on the CPU, drawn uniformly from the first bound to the second."""
    low, high = bounds
    return torch.empty(count).uniform_(low, high, generator=generator)


def chosen(count: int, p: float, generator: torch.Generator) -> Tensor:
    """Return which samples are transformed, each with probability ``p``."""
    return torch.rand(count, generator=generator) < p


def draw_flip(transform: Any, x: Tensor, generator: torch.Generator) -> Draws:
    """Draw which samples are flipped."""
    return {"is_chosen": chosen(len(x), transform.p, generator)}


def flip_horizontally(transform: Any, x: Tensor, draws: Draws) -> Tensor:
    """Mirror the chosen samples, left for right."""
    return _where(draws["is_chosen"], x.flip(-1), x)


def flip_vertically(transform: Any, x: Tensor, draws: Draws) -> Tensor:
    """Mirror the chosen samples, upside down."""
    return _where(draws["is_chosen"], x.flip(-2), x)


def _where(is_chosen: Tensor, changed: Tensor, x: Tensor) -> Tensor:
    return torch.where(is_chosen.to(x.device, non_blocking=True)[:, None, None, None], changed, x)


def draw_rotation(transform: Any, x: Tensor, generator: torch.Generator) -> Draws:
    """Draw the angles, in degrees."""
    return {"angle": uniform(len(x), transform.degrees, generator)}


def rotate(transform: Any, x: Tensor, draws: Draws) -> Tensor:
    """Rotate each sample by its angle."""
    none = torch.zeros(len(x), 2)
    matrix = _inverse(transform.center, x, -draws["angle"], none, torch.ones(len(x)), none)
    return _resampled(transform, x, matrix)


def draw_affine(transform: Any, x: Tensor, generator: torch.Generator) -> Draws:
    """Draw angles, translations in pixels, scales and shears as ``RandomAffine`` does."""
    count, (height, width) = len(x), x.shape[-2:]
    angle = uniform(count, transform.degrees, generator)
    translate, shear = torch.zeros(count, 2), torch.zeros(count, 2)
    scale = torch.ones(count)
    if transform.translate is not None:
        for axis, size in enumerate((width, height)):
            most = float(transform.translate[axis] * size)
            translate[:, axis] = uniform(count, (-most, most), generator).round()
    if transform.scale is not None:
        scale = uniform(count, transform.scale, generator)
    if transform.shear is not None:
        for axis in range(len(transform.shear) // 2):
            bounds = transform.shear[2 * axis : 2 * axis + 2]
            shear[:, axis] = uniform(count, bounds, generator)
    return {"angle": angle, "translate": translate, "scale": scale, "shear": shear}


def affine(transform: Any, x: Tensor, draws: Draws) -> Tensor:
    """Transform each sample by its matrix."""
    return _resampled(transform, x, _inverse(transform.center, x, **draws))


def _inverse(
    center: Any, x: Tensor, angle: Tensor, translate: Tensor, scale: Tensor, shear: Tensor
) -> Tensor:
    """Return the inverse matrices, ``(N, 2, 3)``, from pixels of the output to the input's.

    They are those of torchvision's ``_get_inverse_affine_matrix``.
    """
    angle, shear = angle.double().deg2rad(), shear.double().deg2rad()
    height, width = x.shape[-2:]
    cx, cy = (0.0, 0.0) if center is None else (center[0] - width / 2, center[1] - height / 2)
    tangent, cosine = shear[:, 0].tan(), shear[:, 1].cos()
    turned = angle - shear[:, 1]
    a, c = turned.cos() / cosine, turned.sin() / cosine
    b, d = -(a * tangent + angle.sin()), angle.cos() - c * tangent
    linear = torch.stack([d, -b, -c, a], 1).view(-1, 2, 2) / scale.double()[:, None, None]
    middle = torch.tensor([cx, cy], dtype=torch.float64)
    offset = middle - (linear @ (middle + translate.double())[:, :, None]).squeeze(-1)
    return torch.cat([linear, offset[:, :, None]], 2)


def _resampled(transform: Any, x: Tensor, matrix: Tensor) -> Tensor:
    """Return the samples at the positions that their matrices give, as torchvision computes it."""
    count, _, height, width = x.shape
    dtype = x.dtype if x.is_floating_point() else torch.float32
    half = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    theta = (matrix.mT / half).to(x.device, dtype, non_blocking=True)  # to [-1, 1]
    grid = _positions(height, width, x).expand(count, -1, -1).bmm(theta)
    grid = grid.view(count, height, width, 2)
    mode = v2.InterpolationMode(transform.interpolation).value
    fill = transform.fill
    values = x.to(dtype)
    if fill is None or (fill == 0 and mode == "nearest"):
        moved = grid_sample(values, grid, mode, "zeros", align_corners=False)
    else:
        inside = values.new_ones((count, 1, height, width))
        moved = grid_sample(torch.cat([values, inside], 1), grid, mode, "zeros", False)
        moved, inside = moved[:, :-1], moved[:, -1:]
        color = _color(fill, moved)
        if mode == "nearest":
            moved = torch.where(inside < 0.5, color, moved)
        else:
            moved = (moved - color) * inside + color
    return moved if x.is_floating_point() else moved.round_().to(x.dtype)


def _positions(height: int, width: int, x: Tensor) -> Tensor:
    """Return the homogeneous positions of pixels from the image's middle, ``(1, H * W, 3)``."""
    dtype = x.dtype if x.is_floating_point() else torch.float32
    rows, columns = (
        torch.linspace((1 - size) / 2, (size - 1) / 2, size, device=x.device, dtype=dtype)
        for size in (height, width)
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], -1).view(1, height * width, 3)


def _color(fill: Any, like: Tensor) -> Tensor:
    values = fill if isinstance(fill, list | tuple) else [fill]
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)[:, None, None]


def draw_crop(transform: Any, x: Tensor, generator: torch.Generator) -> Draws:
    """Draw the upper left corners of the crops, in the padded image."""
    with torch.random.fork_rng(devices=[]):  # for the padding, the size and the errors about them
        one = transform.make_params([x[:1]])
    left, top, right, bottom = one["padding"]
    room = (
        x.shape[-2] + top + bottom - one["height"],
        x.shape[-1] + left + right - one["width"],
    )
    top, left = (torch.randint(most + 1, (len(x),), generator=generator) for most in room)
    same = {name: torch.tensor([one[name]] * len(x)) for name in ("height", "width", "padding")}
    return {"top": top, "left": left, **same}


def crop(transform: Any, x: Tensor, draws: Draws) -> Tensor:
    """Pad all samples, and crop each at its corner."""
    padding = draws["padding"][0].tolist()
    if any(padding):
        x = F.pad(x, padding, transform.fill, transform.padding_mode)
    windows = x.unfold(2, int(draws["height"][0]), 1).unfold(3, int(draws["width"][0]), 1)
    samples, top, left = (
        places.to(x.device, non_blocking=True)
        for places in (torch.arange(len(x)), draws["top"], draws["left"])
    )
    return windows[samples, :, top, left]
