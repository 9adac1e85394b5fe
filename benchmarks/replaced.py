"""Profile which share of a training step the layers take that surgery replaces."""

import functools
import pkgutil
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torchvision import ops
from torchvision.models import convnext, vision_transformer
from typing_extensions import override

import lightning_kernels

_BATCH_NORM = (
    "aten::native_batch_norm",
    "aten::native_batch_norm_backward",
    "aten::cudnn_batch_norm",
    "aten::cudnn_batch_norm_backward",
    "aten::miopen_batch_norm",
    "aten::miopen_batch_norm_backward",
)

# Operators of each layer that surgery replaces, by the profiler's names. The time of an operator in
# this list may not include the time of another one in it.
REPLACED_OPS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.LayerNorm: ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    convnext.LayerNorm2d: (),  # it runs layer norm's operators
    nn.GroupNorm: ("aten::native_group_norm", "aten::native_group_norm_backward"),
    **dict.fromkeys(  # instance norm runs batch norm's operators
        (
            nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
            nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
        ),
        _BATCH_NORM,
    ),
    nn.RMSNorm: ("aten::_fused_rms_norm", "aten::_fused_rms_norm_backward"),
    nn.Dropout: ("aten::dropout", "aten::dropout_", "aten::native_dropout_backward"),
    **dict.fromkeys(
        (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
        ("aten::feature_dropout", "aten::feature_dropout_"),
    ),
    nn.AlphaDropout: ("aten::alpha_dropout", "aten::alpha_dropout_"),
    nn.FeatureAlphaDropout: ("aten::feature_alpha_dropout", "aten::feature_alpha_dropout_"),
    nn.SyncBatchNorm: (
        "aten::batch_norm_stats",
        "aten::batch_norm_gather_stats_with_counts",
        "aten::batch_norm_elemt",
        "aten::batch_norm_backward_reduce",
        "aten::batch_norm_backward_elemt",
    ),
    # These layers consist of operators that other layers use too.
    **dict.fromkeys((ops.StochasticDepth, ops.DropBlock2d, ops.DropBlock3d), ()),
    # The norms and dropouts of these layers are counted as norms and dropouts.
    nn.TransformerDecoderLayer: (),
    nn.TransformerEncoderLayer: (),
    vision_transformer.EncoderBlock: (),
}  # fmt: skip
REPLACED = frozenset(name for names in REPLACED_OPS.values() for name in names)


class ShareOfReplacedOps(Callback):
    """Profiles some steps of a fit.

    Args:
        device: The device of the fit.
        first: Index of the first batch to profile.
        last: Index of the last batch to profile.
    """

    def __init__(self, device: torch.device, first: int, last: int) -> None:
        self._cuda = device.type == "cuda"
        self._first, self._last = first, last
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
        # Without acc_events torch 2.11 warns.
        self._profiler = profile(activities=activities, acc_events=True)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self._first:
            self._profiler.start()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self._last:
            if self._cuda:
                torch.cuda.synchronize()
            self._profiler.stop()

    @property
    def share(self) -> float:
        """Share of the device's time in replaced layers, or in the kernels that replace them."""
        return share_of_replaced_ops(self._profiler.key_averages(), on_cuda=self._cuda)


def share_of_replaced_ops(events: Iterable[Any], *, on_cuda: bool) -> float:
    """Return the share of the time in replaced operators, and in kernels that replace them.

    Args:
        events: Averages by name, as the profiler returns them.
        on_cuda: Whether to count the time of the GPU's kernels; otherwise the CPU's operators.
    """
    total = replaced = 0.0
    for event in events:
        if not on_cuda:
            total += event.self_cpu_time_total
            replaced += event.cpu_time_total * (event.key in REPLACED)
        elif event.device_type.name != "CUDA":
            replaced += event.device_time_total * (event.key in REPLACED)
        elif not event.is_user_annotation:  # an annotation contains kernels that are events too
            total += event.self_device_time_total
            replaced += event.self_device_time_total * _does_their_work(event.key)
    return replaced / total


def _does_their_work(kernel: str) -> bool:
    """Return whether a GPU kernel is one of ours, or fused by the compiler from replaced ops."""
    fused = kernel.startswith("triton_")
    return kernel in our_kernels() or (
        fused and any(name.removeprefix("aten::") in kernel for name in REPLACED)
    )


@functools.cache
def our_kernels() -> frozenset[str]:
    """Return the names of the kernels of :mod:`lightning_kernels`."""
    path = lightning_kernels.__path__
    modules = (import_module(m.name) for m in pkgutil.walk_packages(path, "lightning_kernels."))
    names = (name for module in modules for name in vars(module))
    return frozenset(name for name in names if name.endswith("_kernel"))
