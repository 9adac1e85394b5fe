"""A copy of a module's state in CPU memory."""

from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_practices._names import plain_name


class KeptState:
    """What ``module.state_dict()`` held at some time; of a ``DTensor`` this rank's shard alone.

    The memory is allocated by the first copy and used again by later ones. Tensors of a GPU are
    copied to pinned memory and the host doesn't wait: the copies are queued on the current stream,
    behind what has computed the tensors and before whatever overwrites them, so that nothing has to
    guard them. Reading :attr:`values` waits.
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
        """Become a copy of a state, which may have other names and shapes than the last one."""
        local = {name: _local(value) for name, value in state.items()}
        self._values = {name: _copy(value, self._values.get(name)) for name, value in local.items()}
        tensors = (value for value in local.values() if isinstance(value, Tensor))
        self._copied = [_mark(device) for device in {t.device for t in tensors if t.is_cuda}]

    @property
    def values(self) -> dict[str, Any]:
        """The state by names: tensors in CPU memory, and copies of what else there was."""
        while self._copied:
            self._copied.pop().synchronize()
        return self._values

    def __getstate__(self) -> dict[str, Any]:
        return {"_values": self.values, "_copied": []}

    def equals(self, state: Mapping[str, Any], names: Collection[str] | None = None) -> bool:
        """Say whether both states hold tensors alone, and the same ones on this rank.

        Args:
            state: The other one.
            names: Of what. Default: of all.
        """
        if names is None and self.values.keys() != state.keys():
            return False
        pairs = ((self.values.get(name), _local(state[name])) for name in names or state)
        return all(
            isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b.to(a.device))
            for a, b in pairs
        )

    def fits(self, module: nn.Module) -> bool:
        """Say whether the parameters of ``module`` have these names and shapes."""
        shapes = {name: value.shape for name, value in _parameters(module).items()}
        kept = {name: getattr(self._values.get(name), "shape", None) for name in shapes}
        return kept == shapes

    @torch.no_grad()
    def load_into(self, module: nn.Module, strict: bool = True) -> None:
        """Give a module this state, in place but for buffers that have another shape now.

        Buffers made since then stay as they are.
        """
        _remake_buffers(module, self.values)
        live = module.state_dict()
        state = {**live, **self.values}
        for name, value in live.items():
            if isinstance(value, DTensor) and name in self._values:
                # One by one, so that the device needs no second copy; loading is left nothing.
                value.to_local().copy_(self._values[name])
                state[name] = value
        module.load_state_dict(state, strict=strict)

    def gather(self, module: nn.Module) -> dict[str, Any]:
        """Return on rank 0 the whole state, named as in a checkpoint, and nothing on others.

        Every rank has to call this.

        Args:
            module: One sharded as that was whose state this is.
        """
        whole: dict[str, Any] = {}
        live = module.state_dict()
        for name, value in self.values.items():
            like = live.get(name)
            if isinstance(like, DTensor):
                shard = DTensor.from_local(
                    value,
                    like.device_mesh,
                    like.placements,
                    shape=like.shape,
                    stride=like.stride(),
                )
                value = shard.full_tensor().cpu()
            if torch.distributed.get_rank() == 0:
                whole[plain_name(name)] = value
        return whole

    @classmethod
    def shards_of(cls, whole: Mapping[str, Any], module: nn.Module) -> Self:
        """Return this rank's part of what :meth:`gather` returned.

        Args:
            whole: The whole state, on every rank.
            module: The module that is to have it, whose shards say which part that is.
        """
        live = module.state_dict()
        names = {plain_name(name): name for name in live}
        state = {}
        for plain, value in whole.items():
            name = names.get(plain, plain)
            like = live.get(name)
            if isinstance(like, DTensor):
                # Each rank has the whole, so none has to be sent its part.
                value = distribute_tensor(
                    value, like.device_mesh, like.placements, src_data_rank=None
                )
            state[name] = value
        return cls.of(state)


def is_sharded(module: nn.Module) -> bool:
    """Say whether the state of ``module`` has ``DTensor``, as under FSDP2."""
    # Asking for the state shards the parameters again that the last forward pass has gathered.
    return any(isinstance(value, DTensor) for value in module.state_dict().values())


def _local(value: Any) -> Any:
    return value.to_local() if isinstance(value, DTensor) else value


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return the part of the state that is parameters."""
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    state = module.state_dict()
    return {name: _local(value) for name, value in state.items() if name in names}


def _copy(value: Any, memory: Any) -> Any:
    """Copy a value to CPU memory, to the ``memory`` of an earlier copy if that serves."""
    if not isinstance(value, Tensor):
        return deepcopy(value)
    value = value.detach()
    if type(value) is not Tensor or value.layout is not torch.strided:
        return value.to("cpu", copy=True)
    if not _serves(memory, value):
        memory = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
    return memory.copy_(value, non_blocking=value.is_cuda)


def _serves(memory: Any, value: Tensor) -> bool:
    return (
        type(memory) is Tensor
        and memory.layout is torch.strided
        and (memory.shape, memory.dtype) == (value.shape, value.dtype)
        and memory.is_pinned() == value.is_cuda
    )


def _mark(device: torch.device) -> torch.cuda.Event:
    """Return an event that is over once the device has done all that is queued by now."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _remake_buffers(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Make buffers anew that have another shape than in ``state``, or are ``None`` now."""
    live = module.state_dict()
    modules = dict(module.named_modules())
    for name, value in state.items():
        if not isinstance(value, Tensor):
            continue
        if name in live and _local(live[name]).shape == value.shape:
            continue
        path, _, leaf = name.rpartition(".")
        owner = modules.get(path)
        if owner is not None and leaf in owner._buffers:
            present = owner._buffers[leaf]
            device = next(module.parameters()).device if present is None else present.device
            owner.register_buffer(leaf, torch.empty_like(value, device=device))
