"""The states of random number generators, as primitives and tensors that a checkpoint can hold."""

import random
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Generator: TypeAlias = torch.Generator | np.random.Generator | np.random.RandomState | random.Random

_LEAVES = (type, ModuleType, Tensor, np.ndarray, str, bytes)
_DEPTH = 6  # of objects within objects in which generators are searched
_ITEMS = 64  # a longer list holds data rather than transforms
_OBJECTS = 10_000  # the search ends after so many


def random_states(devices: Iterable[torch.device]) -> dict[str, Any]:
    """Return the states of the global generators of Python, NumPy and torch.

    Args:
        devices: The accelerators whose generators are included, besides the CPU.
    """
    return {
        "python": random.getstate(),
        "numpy": _plain(np.random.get_state(legacy=False)),
        "torch": torch.get_rng_state(),
        "devices": [
            (device.type, torch.get_device_module(device).get_rng_state(device))
            for device in devices
        ],
    }


def set_random_states(states: Mapping[str, Any], devices: Iterable[torch.device]) -> None:
    """Set the global generators to the states that :func:`random_states` has returned.

    Args:
        states: The states.
        devices: The accelerators, in the same order. One of another type keeps its state.
    """
    random.setstate(states["python"])
    np.random.set_state(_of_plain(states["numpy"]))
    torch.set_rng_state(states["torch"])
    for device, (kind, state) in zip(devices, states["devices"], strict=False):
        if device.type == kind:
            torch.get_device_module(device).set_rng_state(state, device)


def generators_within(*objects: object) -> list[Generator]:
    """Return the generators that the objects hold in their attributes, in a fixed order.

    The attributes of attributes are searched too, and the items of short lists, tuples and dicts.
    """
    found: dict[int, Generator] = {}
    seen: dict[int, object] = {}  # holds the objects, so that no id is used twice
    for one in objects:
        _search(one, _DEPTH, seen, found)
    return list(found.values())


def states_of(generators: Iterable[Generator]) -> list[Any]:
    """Return the state of each generator."""
    return [_state_of(generator) for generator in generators]


def set_states(generators: Iterable[Generator], states: Iterable[Any]) -> None:
    """Set each generator to its state in the result of :func:`states_of`.

    Raises:
        ValueError: If there are more generators than states, or fewer.
    """
    for generator, state in zip(generators, states, strict=True):
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = _of_plain(state)
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(_of_plain(state))
        else:
            generator.setstate(state)


def _state_of(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return _plain(generator.get_state(legacy=False))
    return generator.getstate()


def _search(one: object, depth: int, seen: dict[int, object], found: dict[int, Generator]) -> None:
    if isinstance(one, Generator):
        found[id(one)] = one
        return
    if depth == 0 or id(one) in seen or len(seen) == _OBJECTS or isinstance(one, _LEAVES):
        return
    seen[id(one)] = one
    for item in _items(one):
        _search(item, depth - 1, seen, found)


def _items(one: object) -> Iterator[object]:
    if isinstance(one, list | tuple | dict):
        if len(one) <= _ITEMS:
            yield from one.values() if isinstance(one, dict) else one
    elif hasattr(one, "__dict__"):
        yield from list(vars(one).values())


def _plain(state: Any) -> Any:
    """Return a state of NumPy with a type and a tensor of bytes in place of each array."""
    if isinstance(state, Mapping):
        return {name: _plain(value) for name, value in state.items()}
    if isinstance(state, np.ndarray):
        return state.dtype.name, torch.from_numpy(state.view(np.uint8).copy())
    return state


def _of_plain(state: Any) -> Any:
    """Return a state of NumPy, the inverse of :func:`_plain`."""
    if isinstance(state, Mapping):
        return {name: _of_plain(value) for name, value in state.items()}
    if isinstance(state, tuple):
        return np.frombuffer(state[1].numpy().tobytes(), dtype=state[0])
    return state
