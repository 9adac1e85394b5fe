"""What is measured: each op's shapes, and the fewest bytes it must move. An op is one entry."""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

Dims = tuple[int, ...]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LAYOUTS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
DIRECTIONS = ("forward", "backward", "both")
CONTIGUOUS = ("contiguous",)
BOTH_LAYOUTS = ("contiguous", "channels_last")


@dataclasses.dataclass(frozen=True)
class Shape:
    """A shape from a model that people train.

    Attributes:
        name: The model, and which of its shapes.
        dims: The dimensions of the first input.
        layouts: Keys of :data:`LAYOUTS` to measure it in.
        quick: Whether it is one of the few of a quick run.
        autotune: Whether it is one of the fewer on which a quick run autotunes, which is slow.
    """

    name: str
    dims: Dims
    layouts: tuple[str, ...] = CONTIGUOUS
    quick: bool = False
    autotune: bool = False

    def shrunk(self, numel: int) -> "Shape":
        """Return the shape with at most ``numel`` elements, its last dimension kept."""
        dims = list(self.dims)
        while math.prod(dims) > numel and max(dims[:-1], default=1) > 1:
            largest = dims.index(max(dims[:-1]))
            dims[largest] = (dims[largest] + 1) // 2
        return dataclasses.replace(self, dims=tuple(dims))


def _no_parameters(dims: Dims) -> tuple[Dims, ...]:
    return ()


@dataclasses.dataclass(frozen=True)
class Op:
    """A function of a tensor and parameters, drawn at random; differentiated if it has a backward.

    The parameters have the type of the activations, as in a model in 16 bits: the one that every
    provider takes.

    Attributes:
        shapes: Where it is measured.
        forward_bytes: Fewest bytes moved per element of the first input, by its bytes per element.
        backward_bytes: Likewise of the backward pass.
        parameters: Dimensions of the further inputs, from those of the first.
        drop_rate: For an op that drops elements at random, with which probability. It is then held
            to its law, where another op is held to float64.
        block_size: For an op that drops blocks, how large they are.
        capture: Whether to time it as a CUDA graph. False for an op that takes another way under
            capture, say, one launch more for its seed: it is then timed as in an eager step.
        directions: Those of :data:`DIRECTIONS` that it has.
    """

    shapes: tuple[Shape, ...]
    forward_bytes: Callable[[int], float]
    backward_bytes: Callable[[int], float]
    parameters: Callable[[Dims], tuple[Dims, ...]] = _no_parameters
    drop_rate: float | None = None
    block_size: int | None = None
    capture: bool = True
    directions: tuple[str, ...] = DIRECTIONS

    def floor_bytes(self, dims: Dims, itemsize: int, direction: str) -> int:
        """Return the fewest bytes that ``direction`` moves; parameters count for nothing."""
        per_element = 0.0
        if direction != "backward":
            per_element += self.forward_bytes(itemsize)
        if direction != "forward":
            per_element += self.backward_bytes(itemsize)
        return math.ceil(math.prod(dims) * per_element)

    def draw(
        self, dims: Dims, layout: str, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, ...]:
        """Return fresh random inputs, leaves of autograd if there is a backward pass."""
        x = torch.randn(dims, dtype=dtype, device=device)
        rest = [torch.randn(d, dtype=dtype, device=device) for d in self.parameters(dims)]
        tensors = (
            tensor.contiguous(memory_format=LAYOUTS[layout]) if tensor.dim() == x.dim() else tensor
            for tensor in (x, *rest)
        )
        differentiable = "backward" in self.directions
        return tuple(tensor.requires_grad_(differentiable) for tensor in tensors)


_VIT = (
    Shape("ViT-B", (256, 197, 768), quick=True, autotune=True),
    Shape("ViT-L", (128, 197, 1024)),
)
_GPT_2 = tuple(
    Shape(f"GPT-2 {size}", (8, 1024, size), quick=size == 768) for size in (768, 1024, 1280, 1600)
)
_LLAMA = tuple(
    Shape(f"Llama {size}", (8192, size), quick=size in (4096, 8192))
    for size in (2048, 4096, 5120, 8192)
)
_CONVNEXT_ROWS = tuple(  # channels last, as its layer norms see them
    Shape(f"ConvNeXt-{model} {channels}", (128, side, side, channels), quick=channels == 96)
    for model, first in (("T", 96), ("B", 128))
    for channels, side in ((first, 56), (2 * first, 28), (4 * first, 14), (8 * first, 7))
)
_QK_NORM = (Shape("QK norm", (262144, 128), quick=True),)
_RESNET_50 = tuple(  # the inputs of its batch norms
    Shape(
        f"ResNet-50 {channels}x{side}", (256, channels, side, side), BOTH_LAYOUTS,
        quick=quick, autotune=quick and side == 14,
    )
    for channels, side, quick in (
        (64, 112, False), (64, 56, False), (256, 56, True), (128, 56, False), (128, 28, False),
        (512, 28, False), (256, 28, False), (256, 14, False), (1024, 14, True), (512, 14, False),
        (512, 7, False), (2048, 7, False),
    )
)  # fmt: skip
_CONVNEXT = tuple(  # the outputs of its blocks
    Shape(
        f"ConvNeXt-{model} {channels}x{side}", (128, channels, side, side), BOTH_LAYOUTS,
        quick=channels in (96, 384), autotune=channels == 384,
    )
    for model, first in (("T", 96), ("B", 128))
    for channels, side in ((first, 56), (2 * first, 28), (4 * first, 14), (8 * first, 7))
)  # fmt: skip
_GROUP_NORM = (  # in 32 groups
    *(  # the inputs of a diffusion model's norms
        Shape(
            f"diffusion {channels}x{side}", (8, channels, side, side), BOTH_LAYOUTS,
            quick=channels in (320, 1280), autotune=channels == 320,
        )
        for channels, side in ((320, 64), (640, 32), (1280, 16), (1280, 8))
    ),
    Shape("960x96", (2, 960, 96, 96), BOTH_LAYOUTS),
    Shape("ResNet-50 256x56", (256, 256, 56, 56), BOTH_LAYOUTS, quick=True),
    Shape("ResNet-50 1024x14", (256, 1024, 14, 14), BOTH_LAYOUTS),
)  # fmt: skip
_INSTANCE_NORM = (
    Shape("style 128x64", (16, 128, 64, 64), BOTH_LAYOUTS, quick=True, autotune=True),
    Shape("style 32x256", (16, 32, 256, 256), BOTH_LAYOUTS, quick=True),
    Shape("volume 32x128", (2, 32, 128, 128, 128)),
)
_FEED_FORWARD = (  # what stands between the two linear layers
    Shape("ViT-B", (256, 197, 3072), quick=True, autotune=True),
    Shape("ViT-L", (128, 197, 4096)),
    *(Shape(f"GPT-2 {4 * size}", (8, 1024, 4 * size), quick=size == 768) for size in (768, 1600)),
)
_BATCH_NORM = (
    *_RESNET_50,
    *(  # as one of eight GPUs sees them
        Shape(f"{shape.name}, batch 32", (32, *shape.dims[1:]), BOTH_LAYOUTS)
        for shape in _RESNET_50
    ),
    Shape("64x1024x7x7", (64, 1024, 7, 7), BOTH_LAYOUTS),
)
_TINY = (Shape("tiny 1x128", (1, 128)), Shape("tiny 256x1024", (256, 1024), quick=True))


_GRADIENTS = tuple(  # as many elements as all of them; benchmarks.gradients knows how to cut them
    Shape(name, (numel // 8, 8), quick=True)
    for name, numel in (
        ("ResNet-50", 25_557_032), ("ViT-L", 304_326_632), ("2000 tensors", 2000 * 4096)
    )
)  # fmt: skip


def _per_channel(dims: Dims) -> tuple[Dims, ...]:
    return dims[1:2], dims[1:2]


def _residual_and_layer_scale(dims: Dims) -> tuple[Dims, ...]:
    """Return the dimensions of a branch' residual and layer scale, for images and for tokens."""
    return dims, (dims[1], 1, 1) if len(dims) == 4 else dims[-1:]


def _gradients(passes: int) -> Op:
    """Return an op on the gradients of a model, which moves them ``passes`` times."""
    return Op(
        shapes=_GRADIENTS,
        forward_bytes=lambda itemsize: passes * itemsize,
        backward_bytes=lambda itemsize: 0,
        directions=("forward",),
    )


OPS: dict[str, Op] = {
    "layer_norm": Op(
        shapes=(*_VIT, *_GPT_2, *_LLAMA, *_QK_NORM, *_CONVNEXT_ROWS, *_TINY),
        forward_bytes=lambda itemsize: 2 * itemsize,  # read x, write y
        backward_bytes=lambda itemsize: 3 * itemsize,  # read x and dy, write dx
        parameters=lambda dims: (dims[-1:], dims[-1:]),
    ),
    "layer_norm2d": Op(
        shapes=tuple(
            Shape(
                f"ConvNeXt-{model} stem",
                (128, channels, 56, 56),
                BOTH_LAYOUTS,
                quick=channels < 192,
                autotune=channels == 96,
            )
            for model, channels in (("T", 96), ("B", 128), ("L", 192))
        ),
        forward_bytes=lambda itemsize: 2 * itemsize,  # read x, write y
        backward_bytes=lambda itemsize: 3 * itemsize,  # read x and dy, write dx
        parameters=_per_channel,
    ),
    "rms_norm": Op(
        shapes=(
            *(dataclasses.replace(s, autotune=s.name == "Llama 4096") for s in _LLAMA),
            *_QK_NORM,
            Shape("row 16384", (4096, 16384)),
            *_TINY,
        ),
        forward_bytes=lambda itemsize: 2 * itemsize,
        backward_bytes=lambda itemsize: 3 * itemsize,
        parameters=lambda dims: (dims[-1:],),
    ),
    # Of the results the norm is used, at rates that drop nothing though all work is done.
    "add_dropout_layer_norm": Op(
        shapes=(*_VIT, *_GPT_2, *_LLAMA, *_TINY),
        forward_bytes=lambda itemsize: 4 * itemsize,  # read x and the residual, write z and y
        backward_bytes=lambda itemsize: 4 * itemsize,  # read dy and z, write dx and dresidual
        parameters=lambda dims: (dims, dims[-1:], dims[-1:]),
        capture=False,
    ),
    "batch_norm": Op(
        shapes=(*_BATCH_NORM, Shape("BatchNorm1d", (100_000, 32), quick=True)),
        forward_bytes=lambda itemsize: 3 * itemsize,  # read x twice, write y
        backward_bytes=lambda itemsize: 5 * itemsize,  # read x and dy twice, write dx
        parameters=_per_channel,
    ),
    "batch_norm_relu": Op(
        shapes=_BATCH_NORM,
        forward_bytes=lambda itemsize: 3 * itemsize,
        backward_bytes=lambda itemsize: 5 * itemsize,
        parameters=_per_channel,
    ),
    "batch_norm_add_relu": Op(
        shapes=_BATCH_NORM,
        forward_bytes=lambda itemsize: 4 * itemsize + 1 / 8,  # the residual too, and a bit
        backward_bytes=lambda itemsize: 6 * itemsize + 2 / 8,  # and write its gradient
        parameters=lambda dims: (*_per_channel(dims), dims),
    ),
    "group_norm": Op(
        shapes=_GROUP_NORM,
        forward_bytes=lambda itemsize: 2 * itemsize,  # read x, write y, where a group fits on chip
        backward_bytes=lambda itemsize: 3 * itemsize,  # read x and dy, write dx
        parameters=_per_channel,
    ),
    "group_norm_silu": Op(
        shapes=_GROUP_NORM,
        forward_bytes=lambda itemsize: 2 * itemsize,
        backward_bytes=lambda itemsize: 3 * itemsize,
        parameters=_per_channel,
    ),
    "instance_norm": Op(
        shapes=_INSTANCE_NORM,
        forward_bytes=lambda itemsize: 2 * itemsize,
        backward_bytes=lambda itemsize: 3 * itemsize,
        parameters=_per_channel,
    ),
    "dropout": Op(
        shapes=(
            *_VIT,
            *_GPT_2,
            *_LLAMA,
            Shape("ResNet-50 2048x7", (256, 2048, 7, 7), layouts=BOTH_LAYOUTS),
            *_TINY,
        ),
        forward_bytes=lambda itemsize: 2 * itemsize,  # read x, write y
        backward_bytes=lambda itemsize: 2 * itemsize,  # read dy, write dx
        drop_rate=0.1,
        capture=False,  # under capture ours draws its seed on the device: one launch more
    ),
    # At a rate that drops nothing: the kernels do the same work, and float64 can judge them.
    "dropout2d": Op(
        shapes=_RESNET_50,
        forward_bytes=lambda itemsize: 2 * itemsize,  # read x, write y
        backward_bytes=lambda itemsize: 2 * itemsize,  # read dy, write dx
        capture=False,
    ),
    "stochastic_depth": Op(
        shapes=(*_CONVNEXT, *_VIT),
        forward_bytes=lambda itemsize: 3 * itemsize,  # read x and the residual, write y
        backward_bytes=lambda itemsize: 3 * itemsize,  # read x and dy, write dx
        parameters=_residual_and_layer_scale,
        capture=False,
    ),
    "dropout_activation": Op(
        shapes=(*_FEED_FORWARD, *_TINY),
        forward_bytes=lambda itemsize: 2 * itemsize,  # read x, write y
        backward_bytes=lambda itemsize: 3 * itemsize,  # read x and dy, write dx
        parameters=lambda dims: (dims[-1:],),
        capture=False,
    ),
    "drop_block": Op(
        shapes=tuple(
            dataclasses.replace(shape, quick=True, autotune=shape.dims[2] == 14)
            for shape in _RESNET_50
            if shape.dims[1:3] in ((1024, 14), (2048, 7), (512, 28))
        ),
        forward_bytes=lambda itemsize: 2 * itemsize + 1 / 8,  # read x, write y and a bit
        backward_bytes=lambda itemsize: 2 * itemsize + 1 / 8,  # read dy and a bit, write dx
        drop_rate=0.1,
        block_size=7,
        capture=False,  # under capture ours draws its seed on the device: one launch more
    ),
    "clip_grad_norm": _gradients(1),  # of which none is too large: read them
    "clip_grad_norm_clipped": _gradients(3),  # read them twice, write them
    "clip_grad_adaptive": _gradients(2),  # of which none is too large: read them and the weights
}
