"""The shapes on which ops are measured, from models that people train."""

import dataclasses
import math

Dims = tuple[int, ...]

_CONTIGUOUS = ("contiguous",)
_BOTH = ("contiguous", "channels_last")


@dataclasses.dataclass(frozen=True)
class Shape:
    """A shape from a model.

    Attributes:
        name: Name of the model, and of the shape within it.
        dims: Dimensions of the first input.
        layouts: The layouts to measure, keys of :data:`benchmarks.ops.LAYOUTS`.
        quick: Whether a quick run measures the shape.
        autotune: Whether a quick run autotunes for the shape, which is slow.
    """

    name: str
    dims: Dims
    layouts: tuple[str, ...] = _CONTIGUOUS
    quick: bool = False
    autotune: bool = False

    def shrunk(self, numel: int) -> "Shape":
        """Return the shape with at most ``numel`` elements and the same last dimension."""
        dims = list(self.dims)
        while math.prod(dims) > numel and max(dims[:-1], default=1) > 1:
            largest = dims.index(max(dims[:-1]))
            dims[largest] = (dims[largest] + 1) // 2
        return dataclasses.replace(self, dims=tuple(dims))


def _images(
    name: str, batch: int, channels: int, side: int, quick: bool = False, autotune: bool = False
) -> Shape:
    return Shape(f"{name} {channels}x{side}", (batch, channels, side, side), _BOTH, quick, autotune)


TINY = (Shape("tiny 1x128", (1, 128)), Shape("tiny 256x1024", (256, 1024), quick=True))
VIT = (
    Shape("ViT-B", (256, 197, 768), quick=True, autotune=True),
    Shape("ViT-L", (128, 197, 1024)),
)
GPT_2 = tuple(
    Shape(f"GPT-2 {size}", (8, 1024, size), quick=size == 768) for size in (768, 1024, 1280, 1600)
)
LLAMA = tuple(
    Shape(f"Llama {size}", (8192, size), quick=size in (4096, 8192))
    for size in (2048, 4096, 5120, 8192)
)
QK_NORM = (Shape("QK norm", (262144, 128), quick=True),)
_CONVNEXT_STAGES = [
    (f"ConvNeXt-{model}", first << stage, 56 >> stage)
    for model, first in (("T", 96), ("B", 128))
    for stage in range(4)
]
CONVNEXT_ROWS = tuple(  # the channels-last inputs of its layer norms
    Shape(f"{model} {channels}", (128, side, side, channels), quick=channels == 96)
    for model, channels, side in _CONVNEXT_STAGES
)
CONVNEXT = tuple(  # the outputs of its blocks
    _images(model, 128, channels, side, quick=channels in (96, 384), autotune=channels == 384)
    for model, channels, side in _CONVNEXT_STAGES
)
CONVNEXT_STEMS = tuple(
    Shape(f"ConvNeXt-{model} stem", (128, channels, 56, 56), _BOTH, channels < 192, channels == 96)
    for model, channels in (("T", 96), ("B", 128), ("L", 192))
)
RESNET_50 = tuple(  # the inputs of its batch norms
    _images("ResNet-50", 256, *size, quick=quick, autotune=quick and size[1] == 14)
    for size, quick in (
        ((64, 112), False), ((64, 56), False), ((256, 56), True), ((128, 56), False),
        ((128, 28), False), ((512, 28), False), ((256, 28), False), ((256, 14), False),
        ((1024, 14), True), ((512, 14), False), ((512, 7), False), ((2048, 7), False),
    )
)  # fmt: skip
BATCH_NORM = (
    *RESNET_50,
    *(  # the batch of one of eight GPUs
        Shape(f"{shape.name}, batch 32", (32, *shape.dims[1:]), _BOTH) for shape in RESNET_50
    ),
    Shape("64x1024x7x7", (64, 1024, 7, 7), _BOTH),
)
BATCH_NORM_1D = (Shape("BatchNorm1d", (100_000, 32), quick=True),)
DROP_BLOCK = tuple(
    dataclasses.replace(shape, quick=True, autotune=shape.dims[2] == 14)
    for shape in RESNET_50
    if shape.dims[1:3] in ((1024, 14), (2048, 7), (512, 28))
)
GROUP_NORM = (  # with 32 groups
    *(  # the inputs of a diffusion model's norms
        _images("diffusion", 8, *size, quick=size[0] in (320, 1280), autotune=size[0] == 320)
        for size in ((320, 64), (640, 32), (1280, 16), (1280, 8))
    ),
    Shape("960x96", (2, 960, 96, 96), _BOTH),
    _images("ResNet-50", 256, 256, 56, quick=True),
    _images("ResNet-50", 256, 1024, 14),
)
INSTANCE_NORM = (
    _images("style", 16, 128, 64, quick=True, autotune=True),
    _images("style", 16, 32, 256, quick=True),
    Shape("volume 32x128", (2, 32, 128, 128, 128)),
)
FEED_FORWARD = (  # the tensor between the two linear layers
    Shape("ViT-B", (256, 197, 3072), quick=True, autotune=True),
    Shape("ViT-L", (128, 197, 4096)),
    *(Shape(f"GPT-2 {4 * size}", (8, 1024, 4 * size), quick=size == 768) for size in (768, 1600)),
)
GRADIENTS = tuple(  # the number of elements of all gradients, which benchmarks.ops splits
    Shape(name, (numel // 8, 8), quick=True)
    for name, numel in (
        ("ResNet-50", 25_557_032), ("ViT-L", 304_326_632), ("2000 tensors", 2000 * 4096)
    )
)  # fmt: skip
DROPOUT = (*VIT, *GPT_2, *LLAMA, Shape("ResNet-50 2048x7", (256, 2048, 7, 7), _BOTH), *TINY)
RMS_NORM = (
    *(dataclasses.replace(shape, autotune=shape.name == "Llama 4096") for shape in LLAMA),
    *QK_NORM,
    Shape("row 16384", (4096, 16384)),
    *TINY,
)

# The shapes that the cpu command measures: one small shape, where only overhead matters, and larger
# shapes.
CPU_ROWS: tuple[Dims, ...] = ((1, 128), (256, 1024), (8, 197, 768))
CPU_LINES: tuple[Dims, ...] = ((2, 8, 16), (8, 768, 197))
CPU_IMAGES: tuple[Dims, ...] = ((2, 8, 4, 4), (8, 64, 56, 56))
CPU_VOLUMES: tuple[Dims, ...] = ((2, 8, 2, 4, 4), (2, 32, 8, 28, 28))
CPU_BLOCKS: tuple[Dims, ...] = ((1, 4, 14, 14), (32, 256, 14, 14), (32, 512, 28, 28))
CPU_CUBES: tuple[Dims, ...] = ((1, 1, 8, 8, 8), (8, 64, 16, 16, 16))
CPU_GRADIENTS: tuple[Dims, ...] = ((3, 32), (400, 4096))
CPU_TOKENS: tuple[Dims, ...] = ((2, 4, 32), (8, 197, 256))
