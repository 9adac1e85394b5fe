"""The states of random number generators, as primitives and tensors that a checkpoint can hold."""

import random
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from inspect import getclosurevars
from types import FunctionType, MethodType, ModuleType
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


def generators_within(objects: Mapping[str, object]) -> dict[str, Generator]:
    """Return the generators that objects hold, by the place where each was found first.

    These places are searched, in each object that is found too, to a depth of six: attributes
    (in ``__dict__`` and ``__slots__``), the items of lists, tuples and dicts of at most 64 items,
    the object of a bound method, the function and arguments of a :func:`functools.partial`, and
    the variables of an outer function that a function uses.

    Args:
        objects: The objects by name, such as ``"dataset"``. A generator's name starts with it:
            ``"dataset.transform.rng"``.
    """
    found: dict[str, Generator] = {}
    seen: dict[int, object] = {}  # holds the objects, so that no id is used twice
    for name, one in objects.items():
        _search(name, one, _DEPTH, seen, found)
    return found


def states_of(generators: Mapping[str, Generator]) -> dict[str, Any]:
    """Return the kind and the state of each generator, by name."""
    return {name: (_kind(one), _state_of(one)) for name, one in generators.items()}


def set_states(generators: Mapping[str, Generator], states: Mapping[str, Any]) -> set[str]:
    """Set the generators to the states that :func:`states_of` has returned.

    Returns:
        The names that only one of the arguments has, or both for generators of different kinds.
        These generators keep their states.
    """
    unmatched = generators.keys() ^ states.keys()
    for name in generators.keys() & states.keys():
        generator, (kind, state) = generators[name], states[name]
        if kind != _kind(generator):
            unmatched.add(name)
        elif isinstance(generator, torch.Generator):
            generator.set_state(state)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = _of_plain(state)
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(_of_plain(state))
        else:
            generator.setstate(state)
    return unmatched


def _kind(generator: Generator) -> str:
    """Return a name that is equal for generators that can take each other's states."""
    if isinstance(generator, torch.Generator):
        return f"torch {generator.device.type}"
    if isinstance(generator, np.random.Generator):
        return f"numpy {type(generator.bit_generator).__name__}"
    if isinstance(generator, np.random.RandomState):
        return f"numpy RandomState {generator.get_state(legacy=False)['bit_generator']}"
    return "python"


def _state_of(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return _plain(generator.get_state(legacy=False))
    return generator.getstate()


def _search(
    name: str, one: object, depth: int, seen: dict[int, object], found: dict[str, Generator]
) -> None:
    if depth < 0 or id(one) in seen or len(seen) == _OBJECTS or isinstance(one, _LEAVES):
        return
    seen[id(one)] = one
    if isinstance(one, Generator):
        found[name] = one
    elif depth:
        for place, item in _items(one):
            _search(name + place, item, depth - 1, seen, found)


def _items(one: object) -> Iterator[tuple[str, object]]:
    """Return what an object holds, and where."""
    if isinstance(one, list | tuple | dict):
        if len(one) <= _ITEMS:
            keys = list(one) if isinstance(one, dict) else range(len(one))
            values = one.values() if isinstance(one, dict) else one
            for place, (key, value) in enumerate(zip(keys, values, strict=True)):
                yield f"[{key!r}]" if isinstance(key, str | int) else f"[{place}]", value
        return
    if isinstance(one, MethodType):
        yield ".__self__", one.__self__
    elif isinstance(one, partial):
        yield from ((".func", one.func), (".args", one.args), (".keywords", one.keywords))
    elif isinstance(one, FunctionType):
        yield from ((f".{key}", item) for key, item in getclosurevars(one).nonlocals.items())
    state = object.__getstate__(one)  # of __dict__, or a tuple of that and of __slots__
    for attributes in state if isinstance(state, tuple) else (state,):
        yield from ((f".{key}", item) for key, item in (attributes or {}).items())


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
