"""A copy of a module's state in CPU memory."""

from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_practices.callbacks._trainer.sharding import local


class KeptState:
    """A copy of ``module.state_dict()``, with this rank's shard of each ``DTensor``.

    The first copy allocates the memory, and later copies reuse it. GPU tensors are copied to pinned
    memory, and the host doesn't wait: the copies are queued on the current stream, after the
    kernels that compute the tensors and before later kernels that overwrite them. Only reading
    :attr:`values` waits.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._copied: list[torch.cuda.Event] = []

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """Return a copy of a state."""
        kept = cls()
        kept.copy_(state)
        return kept

    def copy_(self, state: Mapping[str, Any]) -> None:
        """Copy a state into this object; names and shapes may differ from the previous state."""
        shards = {name: local(value) for name, value in state.items()}
        self._values = {name: _copy(one, self._values.get(name)) for name, one in shards.items()}
        tensors = (value for value in shards.values() if isinstance(value, Tensor))
        self._copied = [_mark(device) for device in {t.device for t in tensors if t.is_cuda}]

    @property
    def values(self) -> dict[str, Any]:
        """The state by name: tensors in CPU memory, and copies of all other values."""
        while self._copied:
            self._copied.pop().synchronize()
        return self._values

    def __getstate__(self) -> dict[str, Any]:
        return {"_values": self.values, "_copied": []}

    def equals(self, state: Mapping[str, Any], names: Collection[str] | None = None) -> bool:
        """Say whether both states hold equal tensors, and only tensors, on this rank.

        Args:
            state: The other state.
            names: The entries to compare. Default: all entries, and the names have to be equal too.
        """
        if names is None and self.values.keys() != state.keys():
            return False
        pairs = ((self.values.get(name), local(state[name])) for name in names or state)
        return all(
            isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b.to(a.device))
            for a, b in pairs
        )

    def fits(self, module: nn.Module) -> bool:
        """Say whether this state has each parameter of ``module``, in the same shape."""
        names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        live = module.state_dict()
        shapes = {name: local(live[name]).shape for name in names & live.keys()}
        return shapes == {name: getattr(self._values.get(name), "shape", None) for name in shapes}

    @torch.no_grad()
    def load_into(self, module: nn.Module, strict: bool = True) -> None:
        """Load this state into a module, in place.

        Buffers that have another shape in this state are allocated anew. Buffers that this state
        lacks stay unchanged.
        """
        _remake_buffers(module, self.values)
        live = module.state_dict()
        state = {**live, **self.values}
        for name, value in live.items():
            if isinstance(value, DTensor) and name in self._values:
                # One by one, so that the device never holds a second copy of all shards.
                local(value).copy_(self._values[name])
                state[name] = value
        module.load_state_dict(state, strict=strict)


def copy_to_cpu(value: Any) -> Any:
    """Return a copy that shares no memory with ``value``; tensors are copied to CPU memory.

    A ``DTensor`` keeps its device.
    """
    if isinstance(value, DTensor) or not isinstance(value, Tensor):
        return deepcopy(value)
    return value.detach().to("cpu", copy=True)


def _copy(value: Any, memory: Any) -> Any:
    """Return a copy in CPU memory; reuse ``memory``, an earlier copy, if it has the same form."""
    if type(value) is not Tensor or value.layout is not torch.strided:
        return copy_to_cpu(value)
    if not _has_form(memory, value):
        memory = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
    return memory.copy_(value, non_blocking=value.is_cuda)


def _has_form(memory: Any, value: Tensor) -> bool:
    return (
        type(memory) is Tensor
        and memory.layout is torch.strided
        and (memory.shape, memory.dtype) == (value.shape, value.dtype)
        and memory.is_pinned() == value.is_cuda
    )


def _mark(device: torch.device) -> torch.cuda.Event:
    """Return an event that completes once the device has run everything queued so far."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _remake_buffers(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Allocate the buffers that are ``None`` in the module or have another shape in ``state``."""
    live = module.state_dict()
    modules = dict(module.named_modules())
    for name, value in state.items():
        if not isinstance(value, Tensor):
            continue
        if name in live and local(live[name]).shape == value.shape:
            continue
        path, _, leaf = name.rpartition(".")
        owner = modules.get(path)
        if owner is not None and leaf in owner._buffers:
            present = owner._buffers[leaf]
            device = next(module.parameters()).device if present is None else present.device
            owner.register_buffer(leaf, torch.empty_like(value, device=device))
