"""Averages of a module's weights, tensor by tensor."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from lightning_practices._names import plain_name

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
Tensors = dict[str, Tensor]


class Averages:
    """Averages of a module's weights, by name; of sharded ones each rank has its own shards'.

    They are in float32 at least: of half precision an average would move by less than the last bit.

    Attributes:
        count: How many weights have been averaged.
    """

    def __init__(self) -> None:
        self.count = 0
        self.kept: Tensors = {}
        self._live: Tensors = {}
        self._groups: list[tuple[list[Tensor], list[Tensor]]] = []  # of one device and dtype

    def pair(self, module: nn.Module) -> None:
        """Find the weights of ``module``, which may have others than before."""
        self._live = averaged_tensors(module)
        if self.count:
            self._fill(self.kept)

    def load(self, module: nn.Module, kept: Mapping[str, Tensor], count: int) -> None:
        """Go on from what :func:`gathered` has made of averages for a checkpoint."""
        self.count = count
        self._live = averaged_tensors(module)
        # Copies, for what was loaded may be others' too.
        self._fill({name: share.clone() for name, share in shares(self._live, kept).items()})

    @torch.no_grad()
    def update(self, decay: float | None) -> None:
        """Average the weights as they are now, exponentially or, without a decay, equally."""
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
            average(averages, [_of(weight, dtype) for weight in weights], self.count)

    @torch.no_grad()
    def _fill(self, known: Mapping[str, Tensor]) -> None:
        """Keep what is known; of weights that are new, what they hold now."""
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
    """Return what is averaged of ``module``: its weights, and its norms' running statistics."""
    tensors = trained_tensors(module)
    return {n: t for n, t in tensors.items() if t.is_floating_point() or t.is_complex()}


def trained_tensors(module: nn.Module) -> Tensors:
    """Return what averages take the place of: the weights, and all that a norm keeps."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()  # an evaluation leaves the root's weights gathered
    found: Tensors = dict(module.named_parameters())
    for prefix, layer in module.named_modules():
        for name in _STATISTICS if isinstance(layer, _NormBase) else ():
            if (statistics := getattr(layer, name)) is not None:
                found[f"{prefix}.{name}" if prefix else name] = statistics
    return found


def _of(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight as it is averaged; at each step, so that most are returned as they are."""
    is_plain = weight.dtype == dtype and not isinstance(weight, DTensor)
    return weight if is_plain else local(weight).to(dtype)


def local(tensor: Tensor) -> Tensor:
    """Return the tensor, of a sharded one this rank's share of it, without a copy."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


@torch.no_grad()
def copies(module: nn.Module) -> Tensors:
    """Return copies of :func:`trained_tensors`, of sharded ones this rank's shares."""
    return {name: local(tensor).clone() for name, tensor in trained_tensors(module).items()}


@torch.no_grad()
def write(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write into the tensors of ``module``, in place, what :func:`copies` has returned."""
    for name, tensor in trained_tensors(module).items():
        if name in values:
            local(tensor).copy_(values[name])


def gathered(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Tensors:
    """Return ``values`` for a checkpoint: of shares the whole, in CPU memory and on rank 0 alone.

    Every rank has to call it.
    """
    whole: Tensors = {}
    for name, weight in live.items():
        if name not in values:
            continue
        value = values[name]
        if isinstance(weight, DTensor):
            value = _like(value, weight).full_tensor()
            if torch.distributed.get_rank() != 0:
                continue
            value = value.cpu()
        whole[plain_name(name)] = value
    return whole


def shares(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Tensors:
    """Return of gathered ``values`` this rank's shares."""
    known = {n: values[plain_name(n)] for n in live if plain_name(n) in values}
    return {n: _share(value, live[n]) for n, value in known.items()}


def put_aside(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Tensors:
    """Return values in CPU memory, but shares on the device, where they can be gathered."""
    return {n: v if isinstance(live[n], DTensor) else v.cpu() for n, v in values.items()}


def _like(share: Tensor, weight: DTensor) -> DTensor:
    mesh, placements = weight.device_mesh, weight.placements
    shape, stride = weight.shape, weight.stride()
    return DTensor.from_local(share, mesh, placements, run_check=False, shape=shape, stride=stride)


def _share(value: Tensor, weight: Tensor) -> Tensor:
    if not isinstance(weight, DTensor):
        return value
    mesh, placements = weight.device_mesh, weight.placements
    value = value.to(weight.device)
    # Without communication: every rank has read the whole.
    return distribute_tensor(value, mesh, placements, src_data_rank=None).to_local()


def copied(value: Any) -> Any:
    """Return a copy in CPU memory; the strategy has moved shards there itself."""
    if isinstance(value, DTensor) or not isinstance(value, Tensor):
        return deepcopy(value)
    return value.detach().to("cpu", copy=True)


def shared(values: Mapping[str, Tensor], state: Mapping[str, Any]) -> Tensors:
    """Return ``values``, of ``state`` those that are equal: ``torch.save`` writes them once."""
    plain = {plain_name(name): value for name, value in state.items()}

    def one(name: str, value: Tensor) -> Tensor:
        other = plain.get(name)
        if type(other) is not Tensor or other.dtype != value.dtype:
            return value
        return other if torch.equal(other.cpu(), value.cpu()) else value

    return {name: one(name, value) for name, value in values.items()}
