"""The ops to measure: our function, torch's, inputs, bytes, shapes and peers of each."""

import dataclasses
import functools
import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from torch import Tensor

import lightning_kernels
from benchmarks import shapes
from benchmarks.providers import (
    BLOCK_SIZE,
    COMPILED,
    DROP_RATE,
    EPS,
    PACKAGES,
    Function,
    Inputs,
    Provider,
    as_they_are,
    compile_function,
)
from benchmarks.rows import EAGER, OURS
from benchmarks.shapes import Dims, Shape

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DIRECTIONS = ("forward", "backward", "both")

_GROUPS = 32  # groups, or the greatest common divisor with the channels of a shrunk shape
_RARE = 1e-12  # a rate that drops nothing but needs all the work, so that float64 is the reference
_NEVER, _ALWAYS = 1e6, 0.0  # limits at which gradients are never and always clipped


def _no_parameters(dims: Dims) -> tuple[Dims, ...]:
    return ()


@dataclasses.dataclass(frozen=True)
class Op:
    """A function of a tensor and parameters, all drawn at random.

    The parameters have the dtype of the activations, as in a 16-bit model, since every provider
    supports that.

    Attributes:
        ours: The function of this project.
        eager: The function of torch, or of the package that has it. It is the reference, also in
            float64.
        shapes: Shapes that ``kernels`` measures.
        cpu: Shapes that ``cpu`` measures.
        moves: Least number of tensors of the first input's size that the forward and the backward
            pass move. Each read or write of a tensor counts once.
        mask_bits: Bits per element that the two passes move in addition, for a mask.
        parameters: Function from the dimensions of the first input to those of the other inputs.
        peers: The packages that also have the function.
        prepare: Function that converts the drawn tensors to the providers' inputs.
        drop_rate: Probability that an element is dropped. Results of an op with a drop rate are
            checked against its distribution, those of all other ops against float64.
        block_size: Size of the dropped blocks, if the op drops blocks.
        activation: Name of the activation that the op includes.
        capture: Whether to time the op as a CUDA graph. False for an op that launches one more
            kernel under capture, for its seed: it is timed as in an eager step.
        directions: The directions of :data:`DIRECTIONS` that the op supports.
    """

    ours: Function
    eager: Function
    shapes: tuple[Shape, ...] = ()
    cpu: tuple[Dims, ...] = ()
    moves: tuple[int, int] = (2, 3)
    mask_bits: tuple[int, int] = (0, 0)
    parameters: Callable[[Dims], tuple[Dims, ...]] = _no_parameters
    peers: tuple[Provider, ...] = ()
    prepare: Callable[[Inputs], Inputs] = as_they_are
    drop_rate: float | None = None
    block_size: int | None = None
    activation: str | None = None
    capture: bool = True
    directions: tuple[str, ...] = DIRECTIONS

    @property
    def providers(self) -> list[Provider]:
        """The providers: ours, torch's eager function, its compiled form, and the peers."""
        functions = {OURS: lambda: self.ours, EAGER: lambda: self.eager}
        if "backward" in self.directions:
            for name, mode in COMPILED.items():
                functions[name] = functools.partial(compile_function, self.eager, mode)
        made = [Provider(name, make, self.prepare) for name, make in functions.items()]
        return [*made, *self.peers]

    def floor_bytes(self, dims: Dims, itemsize: int, direction: str) -> int:
        """Return the least bytes that ``direction`` moves, without parameters."""
        forward, backward = (
            count * itemsize + bits / 8
            for count, bits in zip(self.moves, self.mask_bits, strict=True)
        )
        per_element = {"forward": forward, "backward": backward, "both": forward + backward}
        return math.ceil(math.prod(dims) * per_element[direction])

    def draw(self, dims: Dims, layout: str, dtype: torch.dtype, device: torch.device) -> Inputs:
        """Return fresh random inputs. If there is a backward pass, they require gradients."""
        differentiable = "backward" in self.directions
        tensors = []
        for size in (dims, *self.parameters(dims)):
            tensor = torch.randn(size, dtype=dtype, device=device)
            if len(size) == len(dims):
                tensor = tensor.contiguous(memory_format=LAYOUTS[layout])
            tensors.append(tensor.requires_grad_(differentiable))
        return tuple(tensors)


def _last(dims: Dims) -> tuple[Dims, ...]:
    return dims[-1:], dims[-1:]


def _channels(dims: Dims) -> tuple[Dims, ...]:
    return dims[1:2], dims[1:2]


def _residual_and_layer_scale(dims: Dims) -> tuple[Dims, ...]:
    """Return the dimensions of a residual and of a layer scale, for images and for tokens."""
    return dims, (dims[1], 1, 1) if len(dims) == 4 else dims[-1:]


# The functions below take the module that contains the measured function: ours or torch's. Both
# functions have the same signature.


def _layer_norm(room: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    return room.layer_norm(x, x.shape[-1:], weight, bias, EPS)


def _layer_norm2d(room: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    return _layer_norm(room, x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


def _rms_norm(room: Any, x: Tensor, weight: Tensor) -> Any:
    return room.rms_norm(x, x.shape[-1:], weight, EPS)


def _batch_norm(room: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    return room.batch_norm(x, None, None, weight, bias, True, eps=EPS)


def _group_norm(room: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    return room.group_norm(x, math.gcd(_GROUPS, x.shape[1]), weight, bias, EPS)


def _instance_norm(room: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    return room.instance_norm(x, None, None, weight, bias, eps=EPS)


def _drop(room: Any, x: Tensor, *, name: str, p: float = DROP_RATE) -> Any:
    return getattr(room, name)(x, p, True)


def _drop_block(room: Any, x: Tensor, *, name: str) -> Any:
    return getattr(room, name)(x, DROP_RATE, BLOCK_SIZE)


def _clip(room: Any, *weights: Tensor, max_norm: float) -> Any:
    return room.clip_grad_norm_(weights, max_norm).to(weights[0].dtype)


def _clip_value(room: Any, *weights: Tensor) -> Any:
    room.clip_grad_value_(weights, _NEVER)
    return _first_gradient(weights)


def _clip_with_norm(room: Any, *weights: Tensor) -> Any:
    room.clip_grads_with_norm_(weights, _NEVER, weights[0].new_ones(()))
    return _first_gradient(weights)


def _first_gradient(weights: Inputs) -> Any:
    grad = weights[0].grad
    return None if grad is None else grad.flatten()


def _both(function: Callable[..., Any], room: Any = F, **options: Any) -> tuple[Function, Function]:
    """Return two functions: ``function`` for our module, and for the module ``room``."""
    return (
        functools.partial(function, lightning_kernels, **options),
        functools.partial(function, room, **options),
    )


def _our_batch_norm_relu(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None
) -> Tensor:
    return lightning_kernels.batch_norm(
        x, None, None, weight, bias, True, eps=EPS, activation="relu", residual=residual
    )


def _our_group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    groups = math.gcd(_GROUPS, x.shape[1])
    return lightning_kernels.group_norm(x, groups, weight, bias, EPS, "silu")


def _our_add_norm(name: str, x: Tensor, residual: Tensor, *parameters: Tensor) -> Any:
    function = getattr(lightning_kernels, f"add_dropout_{name}")
    return function(x, residual, x.shape[-1:], *parameters, p=_RARE, eps=EPS)[0]


def _eager_add_norm(name: str, x: Tensor, residual: Tensor, *parameters: Tensor) -> Any:
    z = residual + F.dropout(x, _RARE)
    return getattr(F, name)(z, x.shape[-1:], *parameters, eps=EPS)


def _our_stochastic_depth(x: Tensor, residual: Tensor, layer_scale: Tensor) -> Tensor:
    return lightning_kernels.stochastic_depth(
        x, _RARE, "row", residual=residual, layer_scale=layer_scale
    )


def _eager_stochastic_depth(x: Tensor, residual: Tensor, layer_scale: Tensor) -> Tensor:
    """Compute the end of torchvision's and timm's residual blocks, with one call per operation."""
    kept = x.new_empty([x.shape[0], *[1] * (x.dim() - 1)]).bernoulli_(1 - _RARE).div_(1 - _RARE)
    return residual + layer_scale * x * kept


def _our_clip_adaptive(*weights: Tensor) -> Any:
    lightning_kernels.clip_grad_adaptive_(weights, _NEVER)
    return _first_gradient(weights)


def _timm_clip_adaptive(*weights: Tensor) -> Any:
    import_module("timm.utils.agc").adaptive_clip_grad(weights, _NEVER)
    return _first_gradient(weights)


@functools.cache
def sizes_of(numel: int) -> tuple[Dims, ...]:
    """Return sizes of tensors with ``numel`` elements in all: a known model's, or equal sizes."""
    with torch.device("meta"):
        for make in (torchvision.models.resnet50, torchvision.models.vit_l_16):
            sizes = tuple(tuple(p.shape) for p in make().parameters())
            if sum(map(math.prod, sizes)) == numel:
                return sizes
    if numel % 4096 == 0:
        return ((64, 64),) * (numel // 4096)
    first = numel // 10
    return ((first,),) * 9 + ((numel - 9 * first,),)


def with_gradients(inputs: Inputs) -> Inputs:
    """Return parameters filled with 1, whose gradients are copies of pieces of the only input."""
    flat = inputs[0].flatten()
    sizes = sizes_of(flat.numel())
    weights = []
    for piece, size in zip(torch.split(flat, [*map(math.prod, sizes)]), sizes, strict=True):
        weight = torch.ones(size, dtype=flat.dtype, device=flat.device)
        weight.grad = piece.clone().view(size)
        weights.append(weight)
    return tuple(weights)


_NORM_OF_CHANNELS: dict[str, Any] = {"parameters": _channels, "cpu": shapes.CPU_IMAGES}
_CLIP: dict[str, Any] = {
    "prepare": with_gradients, "directions": ("forward",), "cpu": shapes.CPU_GRADIENTS,
}  # fmt: skip
_CLIP_NORM = _both(_clip, torch.nn.utils, max_norm=_NEVER)

# The comment at an op lists the tensors that it moves: forward; backward.
OPS: dict[str, Op] = {
    "layer_norm": Op(  # x, y; x, dy, dx
        *_both(_layer_norm),
        shapes=(*shapes.VIT, *shapes.GPT_2, *shapes.LLAMA, *shapes.QK_NORM, *shapes.CONVNEXT_ROWS,
                *shapes.TINY),
        cpu=shapes.CPU_ROWS, parameters=_last, peers=PACKAGES["layer_norm"],
    ),
    "layer_norm2d": Op(
        *_both(_layer_norm2d), shapes=shapes.CONVNEXT_STEMS, parameters=_channels
    ),
    "rms_norm": Op(
        *_both(_rms_norm), shapes=shapes.RMS_NORM, cpu=shapes.CPU_ROWS,
        parameters=lambda dims: (dims[-1:],), peers=PACKAGES["rms_norm"],
    ),
    "add_dropout_layer_norm": Op(  # x, residual, z, y; dy, z, dx, dresidual
        functools.partial(_our_add_norm, "layer_norm"),
        functools.partial(_eager_add_norm, "layer_norm"),
        shapes=(*shapes.VIT, *shapes.GPT_2, *shapes.LLAMA, *shapes.TINY), cpu=shapes.CPU_ROWS,
        moves=(4, 4), parameters=lambda dims: (dims, *_last(dims)), capture=False,
    ),
    "add_dropout_rms_norm": Op(
        functools.partial(_our_add_norm, "rms_norm"),
        functools.partial(_eager_add_norm, "rms_norm"),
        cpu=shapes.CPU_ROWS, moves=(4, 4), parameters=lambda dims: (dims, dims[-1:]), capture=False,
    ),
    "batch_norm": Op(  # x twice, y; x and dy twice, dx
        *_both(_batch_norm), **_NORM_OF_CHANNELS, moves=(3, 5),
        shapes=(*shapes.BATCH_NORM, *shapes.BATCH_NORM_1D),
    ),
    "batch_norm_relu": Op(
        _our_batch_norm_relu, lambda x, weight, bias: F.relu(_batch_norm(F, x, weight, bias)),
        shapes=shapes.BATCH_NORM, moves=(3, 5), parameters=_channels,
    ),
    "batch_norm_add_relu": Op(  # also the residual and a bit; its gradient and the bit twice
        _our_batch_norm_relu,
        lambda x, weight, bias, residual: F.relu(_batch_norm(F, x, weight, bias) + residual),
        shapes=shapes.BATCH_NORM, moves=(4, 6), mask_bits=(1, 2),
        parameters=lambda dims: (*_channels(dims), dims),
    ),
    "group_norm": Op(  # x, y if a group fits on chip; x, dy, dx
        *_both(_group_norm), **_NORM_OF_CHANNELS, shapes=shapes.GROUP_NORM
    ),
    "group_norm_silu": Op(
        _our_group_norm_silu, lambda x, weight, bias: F.silu(_group_norm(F, x, weight, bias)),
        shapes=shapes.GROUP_NORM, parameters=_channels, activation="silu",
    ),
    "instance_norm": Op(
        *_both(_instance_norm), **_NORM_OF_CHANNELS, shapes=shapes.INSTANCE_NORM
    ),
    "dropout": Op(  # x, y; dy, dx
        *_both(_drop, name="dropout"), shapes=shapes.DROPOUT, cpu=shapes.CPU_ROWS, moves=(2, 2),
        peers=PACKAGES["dropout"], drop_rate=DROP_RATE, capture=False,
    ),
    "dropout1d": Op(*_both(_drop, name="dropout1d"), cpu=shapes.CPU_LINES),
    "dropout2d": Op(
        *_both(_drop, name="dropout2d", p=_RARE), shapes=shapes.RESNET_50, cpu=shapes.CPU_IMAGES,
        moves=(2, 2), capture=False,
    ),
    "dropout3d": Op(*_both(_drop, name="dropout3d"), cpu=shapes.CPU_VOLUMES),
    "alpha_dropout": Op(*_both(_drop, name="alpha_dropout"), cpu=shapes.CPU_ROWS),
    "feature_alpha_dropout": Op(
        *_both(_drop, name="feature_alpha_dropout"), cpu=shapes.CPU_IMAGES
    ),
    "stochastic_depth": Op(  # x, residual, y; x, dy, dx
        _our_stochastic_depth, _eager_stochastic_depth, moves=(3, 3), capture=False,
        shapes=(*shapes.CONVNEXT, *shapes.VIT), cpu=shapes.CPU_ROWS,
        parameters=_residual_and_layer_scale,
    ),
    "dropout_activation": Op(  # x, y; x, dy, dx
        lambda x, bias: lightning_kernels.dropout_activation(x, "gelu", _RARE, bias=bias),
        lambda x, bias: F.dropout(F.gelu(x + bias), _RARE),
        shapes=(*shapes.FEED_FORWARD, *shapes.TINY), cpu=shapes.CPU_ROWS,
        parameters=lambda dims: (dims[-1:],), capture=False, activation="gelu",
    ),
    "drop_block2d": Op(  # x, y, a bit; dy, a bit, dx
        *_both(_drop_block, torchvision.ops, name="drop_block2d"), shapes=shapes.DROP_BLOCK,
        cpu=shapes.CPU_BLOCKS, moves=(2, 2), mask_bits=(1, 1), peers=PACKAGES["drop_block2d"],
        drop_rate=DROP_RATE, block_size=BLOCK_SIZE, capture=False,
    ),
    "drop_block3d": Op(
        *_both(_drop_block, torchvision.ops, name="drop_block3d"), cpu=shapes.CPU_CUBES
    ),
    "clip_grad_norm_": Op(  # the norm is below the limit: reads the gradients once
        *_CLIP_NORM, **_CLIP, shapes=shapes.GRADIENTS, moves=(1, 0)
    ),
    "clip_grad_norm_clipped": Op(  # reads the gradients twice, and writes them
        *_both(_clip, torch.nn.utils, max_norm=_ALWAYS), shapes=shapes.GRADIENTS, moves=(3, 0),
        prepare=with_gradients, directions=("forward",),
    ),
    "clip_grad_adaptive_": Op(  # norms are below the limit: reads gradients and weights
        _our_clip_adaptive, _timm_clip_adaptive, **_CLIP, shapes=shapes.GRADIENTS, moves=(2, 0)
    ),
    "clip_grad_value_": Op(*_both(_clip_value, torch.nn.utils), **_CLIP),
    "clip_grads_with_norm_": Op(*_both(_clip_with_norm, torch.nn.utils), **_CLIP),
    "clip_grad_scale": Op(  # torch has no function that only finds the scale
        lambda *weights: lightning_kernels.clip_grad_scale(weights, _NEVER).grad_scale,
        _CLIP_NORM[1], **_CLIP,
    ),
}  # fmt: skip
