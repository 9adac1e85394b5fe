"""Averages of a module's weights, tensor by tensor."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from lightning_practices.callbacks._trainer.sharding import local, to_shards

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
Tensors = dict[str, Tensor]


class Averages:
    """Averages of a module's weights, by name; each rank averages its own shards.

    The averages have at least float32 precision: in half precision most changes of an average are
    below its last bit, and would be lost.

    Attributes:
        count: How many times the weights have been averaged.
        kept: The averages by name.
    """

    def __init__(self) -> None:
        self.count = 0
        self.kept: Tensors = {}
        self._live: Tensors = {}
        self._groups: list[tuple[list[Tensor], list[Tensor]]] = []  # by device and dtype

    def pair(self, module: nn.Module) -> None:
        """Pair each average with its weight in ``module``; the weights may be new tensors."""
        self._live = averaged_tensors(module)
        if self.count:
            self._fill(self.kept)

    def load(self, module: nn.Module, whole: Mapping[str, Tensor], count: int) -> None:
        """Load the averages of a checkpoint, given as whole tensors."""
        self.count = count
        self._live = averaged_tensors(module)
        # Cloned, since other objects may hold the checkpoint's tensors too.
        self._fill({name: one.clone() for name, one in to_shards(whole, self._live).items()})

    @torch.no_grad()
    def update(self, decay: float | None) -> None:
        """Average the present weights; without a ``decay`` all weights count equally."""
        if self.count:
            self._average(decay)
        else:
            self._fill({})
        self.count += 1

    def _average(self, decay: float | None) -> None:
        average: Callable[[list[Tensor], list[Tensor], int], None] = (
            get_swa_multi_avg_fn() if decay is None else get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        )
        for averages, weights in self._groups:
            dtype = averages[0].dtype
            average(averages, [_as_averaged(weight, dtype) for weight in weights], self.count)

    @torch.no_grad()
    def _fill(self, known: Mapping[str, Tensor]) -> None:
        """Store the known averages; all other averages begin with the present weights."""
        self.kept = {}
        groups: dict[object, tuple[list[Tensor], list[Tensor]]] = {}
        for name, weight in self._live.items():
            now, kept = local(weight), known.get(name)
            dtype = torch.promote_types(now.dtype, torch.float32)
            if kept is None or kept.shape != now.shape:
                kept = now.to(dtype, copy=True)
            self.kept[name] = kept = kept.to(now.device, dtype)
            averages, weights = groups.setdefault((kept.device, dtype), ([], []))
            averages.append(kept)
            weights.append(weight)
        self._groups = list(groups.values())


def averaged_tensors(module: nn.Module) -> Tensors:
    """Return the tensors that are averaged: the parameters, and running statistics of norms."""
    tensors = trained_tensors(module)
    return {n: t for n, t in tensors.items() if t.is_floating_point() or t.is_complex()}


def trained_tensors(module: nn.Module) -> Tensors:
    """Return the tensors that training changes: the parameters, and all statistics of norms."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()  # an evaluation leaves the root module gathered
    found: Tensors = dict(module.named_parameters())
    for prefix, layer in module.named_modules():
        for name in _STATISTICS if isinstance(layer, _NormBase) else ():
            if (statistics := getattr(layer, name)) is not None:
                found[f"{prefix}.{name}" if prefix else name] = statistics
    return found


@torch.no_grad()
def copies(module: nn.Module) -> Tensors:
    """Return copies of :func:`trained_tensors`; of sharded tensors, this rank's shards."""
    return {name: local(tensor).clone() for name, tensor in trained_tensors(module).items()}


@torch.no_grad()
def write(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write values, as :func:`copies` returns them, into the tensors of ``module``, in place."""
    for name, tensor in trained_tensors(module).items():
        if name in values:
            local(tensor).copy_(values[name])


def put_aside(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Tensors:
    """Return values in CPU memory, but shards on the device, as only there they can be gathered."""
    return {n: v if isinstance(live[n], DTensor) else v.cpu() for n, v in values.items()}


def _as_averaged(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return this rank's shard of a weight in the dtype of its average."""
    # This runs for each weight at each step, so the common case makes no call into torch.
    is_plain = weight.dtype == dtype and not isinstance(weight, DTensor)
    return weight if is_plain else local(weight).to(dtype)
