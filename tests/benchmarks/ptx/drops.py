"""The elements that each dropout keeps, for comparison between compiled and interpreted kernels."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import lightning_kernels as lk

NHWC = torch.channels_last


class Drop(NamedTuple):
    """A dropout, called on ones.

    Attributes:
        function: The dropout.
        dims: Dimensions of its input.
        dtype: Type of its input.
        format: Memory format of its input.
    """

    function: Callable[[Tensor], Tensor]
    dims: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    format: torch.memory_format = torch.contiguous_format

    def kept(self) -> tuple[Tensor, Tensor]:
        """Return the elements of the output that are kept, and of the gradient, for one seed."""
        x = torch.ones(self.dims, dtype=self.dtype).to(memory_format=self.format).requires_grad_()
        torch.manual_seed(7)
        y = self.function(x)
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
        return y == y.max(), grad == grad.max()


def _add_norm(x: Tensor, norm: str, **options: float) -> Tensor:
    """Return the sum of the dropped input and a residual of zeros."""
    function = getattr(lk, f"add_dropout_{norm}")
    result: Tensor = function(x, torch.zeros_like(x), x.shape[-1:], **options)[1]
    return result


def _drop_block(x: Tensor, per_channel: bool = True) -> Tensor:
    function = lk.drop_block2d if x.dim() == 4 else lk.drop_block3d
    return function(x, 0.2, 3, per_channel=per_channel)


def _rate() -> Tensor:
    """Return a rate that is a tensor, as a schedule has it."""
    return torch.tensor(0.3)


_one_mask = functools.partial(_drop_block, per_channel=False)
_layer = functools.partial(_add_norm, norm="layer_norm")
_rms = functools.partial(_add_norm, norm="rms_norm")

# The dropouts of `make test`: each kernel that draws at least once.
FEW: dict[str, Drop] = {
    "dropout": Drop(lambda x: lk.dropout(x, 0.3), (37, 129)),
    "alpha_dropout": Drop(lambda x: lk.alpha_dropout(x, 0.3, training=True), (5, 77)),
    "dropout2d": Drop(lambda x: lk.dropout2d(x, 0.3), (4, 48, 7, 7)),
    "dropout2d NHWC": Drop(lambda x: lk.dropout2d(x, 0.3), (4, 48, 7, 7), format=NHWC),
    "stochastic_depth": Drop(lambda x: lk.stochastic_depth(x, 0.5, "row"), (12, 5, 9)),
    "dropout_activation": Drop(lambda x: lk.dropout_activation(x, "gelu", 0.3), (9, 100)),
    "add_dropout_layer_norm": Drop(functools.partial(_layer, p=0.3), (11, 120)),
    "drop_block2d": Drop(_drop_block, (3, 8, 14, 14)),
    "drop_block2d NHWC": Drop(_drop_block, (3, 8, 9, 14), format=NHWC),
}

MANY: dict[str, Drop] = {
    "dropout, fp32": Drop(lambda x: lk.dropout(x, 0.5), (4097,), torch.float32),
    "dropout, fp16": Drop(lambda x: lk.dropout(x, 0.5), (3, 5, 7), torch.float16),
    "dropout of rows of 4": Drop(lambda x: lk.dropout(x, 0.1), (64, 128)),
    "dropout, scheduled": Drop(lambda x: lk.dropout(x, _rate()), (37, 129)),
    "alpha_dropout, scheduled": Drop(
        lambda x: lk.alpha_dropout(x, _rate(), training=True), (300, 8), torch.float32
    ),
    "dropout1d": Drop(lambda x: lk.dropout1d(x, 0.3), (4, 48, 17)),
    "dropout3d": Drop(lambda x: lk.dropout3d(x, 0.3), (2, 48, 3, 5, 5), torch.float32),
    "feature_alpha_dropout": Drop(
        lambda x: lk.feature_alpha_dropout(x, 0.3, training=True), (4, 48, 8, 8)
    ),
    "feature_alpha_dropout NHWC": Drop(
        lambda x: lk.feature_alpha_dropout(x, _rate(), training=True), (4, 48, 8, 8), format=NHWC
    ),
    "stochastic_depth NHWC": Drop(
        lambda x: lk.stochastic_depth(x, 0.5, "row"), (9, 16, 7, 7), format=NHWC
    ),
    "stochastic_depth, residual": Drop(
        lambda x: lk.stochastic_depth(
            x, 0.5, "row", residual=torch.zeros_like(x), layer_scale=torch.ones(64)
        ),
        (16, 3, 64),
    ),
    "dropout_activation, fp32": Drop(
        lambda x: lk.dropout_activation(x, "silu", 0.3), (7, 33), torch.float32
    ),
    "dropout_activation, wide": Drop(
        lambda x: lk.dropout_activation(x, "relu", 0.3, bias=torch.ones(256).to(x.dtype)), (20, 256)
    ),
    "add_dropout_layer_norm, odd": Drop(functools.partial(_layer, p=0.3), (11, 77)),
    "add_dropout_layer_norm, drop_path": Drop(functools.partial(_layer, drop_path=0.4), (16, 64)),
    "add_dropout_rms_norm": Drop(functools.partial(_rms, p=0.3), (11, 120), torch.float32),
    "add_dropout_rms_norm, both": Drop(
        functools.partial(_rms, p=0.3, drop_path=0.4), (16, 3, 40), torch.float32
    ),
    "drop_block2d, odd": Drop(_drop_block, (3, 4, 33, 17), torch.float32),
    "drop_block2d, wide": Drop(_drop_block, (2, 4, 32, 32)),
    "drop_block2d, one mask": Drop(_one_mask, (3, 8, 12, 12)),
    "drop_block2d NHWC, one mask": Drop(_one_mask, (3, 8, 12, 12), format=NHWC),
    "drop_block3d": Drop(_drop_block, (2, 4, 6, 6, 8)),
}

DROPS = FEW | MANY

if __name__ == "__main__":  # under TRITON_INTERPRET=1
    torch.set_num_threads(1)
    torch.save({name: DROPS[name].kept() for name in sys.argv[2:]}, Path(sys.argv[1]))
