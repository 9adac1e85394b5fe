"""Layers and formats that would make a step faster."""

import copy
from collections.abc import Iterator

import torch
from torch import nn

from lightning_practices import surgery
from lightning_practices._names import some
from lightning_practices.advisor._isolation import isolated
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule

_PIXELS = 8  # of a channel's side, at least, for channels last
_BF16 = (8, 0)  # compute capability
_PARAMETERS = 1_000_000  # of a model for which a faster step matters


@rule(
    "LP701", "hint",
    practice="Norms, dropouts and activations run as fused kernels",
    measures="layers that surgery.fuse would replace or fold, on a GPU",
    healthy="none",
    source="lightning_practices.surgery.fuse",
)  # fmt: skip
def layers_to_fuse(seen: Observation) -> Iterator[Evidence]:
    if _device(seen).type != "cuda":
        return
    found = list(_fusible(seen.module))
    if found:
        yield Evidence(
            f"{len(found)} layers have a fused kernel and don't use it: {some(found)}",
            "lightning_practices.surgery.fuse(module, batch), which keeps those that are faster",
            tuple(found),
            {"layers": len(found)},
        )


@rule(
    "LP702", "hint",
    practice="Convolutions on a GPU run in channels last",
    measures="the memory format of the weights of 2-D convolutions in half precision",
    healthy="channels last",
    source="NVIDIA, deep learning performance: convolutional layers",
)  # fmt: skip
def channels_last(seen: Observation) -> Iterator[Evidence]:
    if _device(seen).type != "cuda" or not _is_half(seen):
        return
    convolutions = [
        name
        for name, part in seen.modules.items()
        if isinstance(part, nn.Conv2d)
        and part.groups == 1
        and part.weight[0].numel() > 1
        and not part.weight.is_contiguous(memory_format=torch.channels_last)
    ]
    if convolutions:
        yield Evidence(
            f"{len(convolutions)} convolutions have contiguous weights, which tensor cores read"
            f" after a transposition: {some(convolutions)}",
            "module = module.to(memory_format=torch.channels_last), and the images too",
            tuple(convolutions),
        )


@rule(
    "LP703", "hint",
    practice="Steps run in bfloat16 where the device has it",
    measures="the precision of the Trainer on a GPU with tensor cores for bfloat16",
    healthy="bf16-mixed",
    source="Kalamkar et al. 2019, a study of bfloat16 for deep learning training",
)  # fmt: skip
def half_precision(seen: Observation) -> Iterator[Evidence]:
    device = _device(seen)
    size = sum(p.numel() for p in seen.module.parameters())
    if device.type != "cuda" or _precision(seen) != "32-true" or size < _PARAMETERS:
        return
    if torch.cuda.get_device_capability(device) >= _BF16:
        yield Evidence(
            f"{size:,} parameters train in float32 on a GPU that multiplies matrices in bfloat16"
            " several times as fast, in half the memory",
            'Trainer(precision="bf16-mixed")',
        )


def _fusible(module: nn.Module) -> Iterator[str]:
    """Yield the names of layers that fusing would change, by a trial on copies without weights."""
    shared: dict[int, object] = {id(x): x for x in (*module.parameters(), *module.buffers())}
    with isolated():
        for name, part in module.named_children():
            report = surgery.fuse(copy.deepcopy(part, dict(shared)))
            names = [one.names for one in report.replaced] + [one.names for one in report.folded]
            yield from (f"{name}.{each[0]}".removesuffix(".") for each in names)


def _device(seen: Observation) -> torch.device:
    device: torch.device = seen.observer.strategy.root_device
    return device


def _precision(seen: Observation) -> str:
    return str(seen.observer.precision)


def _is_half(seen: Observation) -> bool:
    return "16" in _precision(seen)
