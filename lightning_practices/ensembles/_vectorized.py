"""Run models that differ only in their weights in one ``vmap``."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.conv import _ConvNd

# Attributes of modules that the comparison of settings skips. Tensors and submodules are compared
# by name elsewhere, all members are in eval mode, and the last two belong to Lightning and don't
# affect the forward.
_STATE = {"_parameters", "_buffers", "_modules", "training", "_trainer", "_fabric"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


class VectorizedModels:
    """Run models in one ``vmap`` over their stacked parameters and buffers.

    The models' own tensors become views of the stacked tensors. So there is only one copy of the
    weights, and a change in place is visible in both. Tensors that were replaced (moved, converted,
    assigned) are stacked again at the next call.

    Args:
        models: Frozen models in eval mode, for which :func:`difference` returns ``None``.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self._models = models
        self._state: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        self._places: list[int] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of all models, stacked in dimension 0."""
        if self._places != self._places_now():
            self._stack()

        def call(*state: dict[str, Any]) -> Any:
            return functional_call(self._models[0], state, args, kwargs)

        fast_path = torch.backends.mha.get_fastpath_enabled()
        try:
            # vmap would loop over the models for attention's fused operators.
            torch.backends.mha.set_fastpath_enabled(False)
            return vmap(call, randomness="different")(*self._state)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)

    def __getstate__(self) -> dict[str, Any]:
        # The tensors of a copy are no views of the stacks: the copy has to stack them again.
        return {"_models": self._models, "_state": ({}, {}), "_places": []}

    def _stack(self) -> None:
        # Tensors made in inference mode would prevent gradients of the input in later calls.
        with torch.inference_mode(False):
            self._state = stack_module_state(list(self._models))
            both = {**self._state[0], **self._state[1]}
            for i, model in enumerate(self._models):
                for name, tensor in _tensors(model):
                    tensor.data = both[name][i]
        self._places = self._places_now()

    def _places_now(self) -> list[int]:
        return [tensor.data_ptr() for model in self._models for _, tensor in _tensors(model)]


def difference(models: Sequence[nn.Module]) -> str | None:
    """Describe how models differ in more than the values of their tensors, or return ``None``."""
    first = dict(models[0].named_modules())
    tensors = dict(_tensors(models[0]))
    for name, tensor in tensors.items():
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
            return f"{name!r} is a {type(tensor).__name__}, which can't be stacked"
    for model in models[1:]:
        other = dict(model.named_modules())
        if first.keys() != other.keys():
            return "their layers differ in number or name"
        for name, layer in first.items():
            what = repr(name) if name else "the models"
            if type(layer) is not type(other[name]):
                kinds = f"{type(layer).__name__} and {type(other[name]).__name__}"
                return f"{what} differ: {kinds}"
            if not _equal(_settings(layer), _settings(other[name])):
                return f"the settings of {what} differ, or can't be compared"
        others = dict(_tensors(model))
        if tensors.keys() != others.keys():
            return "their parameters or buffers differ in name"
        for name, tensor in tensors.items():
            if _form(tensor) != _form(others[name]):
                return f"{name!r} differs in shape, dtype or device"
    return None


def has_convolutions(model: nn.Module) -> bool:
    """Return whether ``model`` has convolutions, which ``vmap`` turns into grouped convolutions."""
    return any(isinstance(layer, _ConvNd) for layer in model.modules())


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return type(tensor), tensor.shape, tensor.dtype, tensor.device


def _settings(layer: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(layer).items() if name not in _STATE}


def _equal(a: Any, b: Any) -> bool:
    """Return whether two settings are certainly equal; False if they can't be compared."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, _PLAIN):
        return bool(a == b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_equal(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return isinstance(a, set | frozenset) and a == b
