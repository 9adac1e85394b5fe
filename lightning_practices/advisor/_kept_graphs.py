"""Tensors with a graph that attributes of a module keep from one step to the next."""

from collections import deque
from collections.abc import Iterator, Set
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_practices._names import module_name

_LAST = 1000  # elements of a list that are looked at
_DEPTH = 4  # of lists and dicts within each other
_OWN = frozenset({"_parameters", "_modules"})


class _Held(NamedTuple):
    tensor: Tensor
    node: Any  # of the graph; kept, so that it is the same object at each look


class KeptGraphs:
    """Compares what a module holds after a step with what it held after the one before.

    Attributes:
        carried: The attributes of which the loss of a later step depends on an earlier step's
            tensor, such as a state that wasn't detached.
        grown: The attributes that hold the graphs of all steps: lists that got longer, and sums.
    """

    def __init__(self) -> None:
        self.carried: list[str] = []
        self.grown: list[str] = []
        self._held: dict[str, list[_Held]] = {}

    @property
    def is_open(self) -> bool:
        """Whether another step would tell what becomes of the tensors that are held."""
        return bool(self._held)

    def note_loss(self, loss: Tensor) -> None:
        """Note which of the tensors of the steps before a loss depends on."""
        nodes: Set[Any] = _nodes_before(loss) if self._held else frozenset()
        for name, held in self._held.items():
            if name not in self.carried and any(one.node in nodes for one in held):
                self.carried.append(name)

    def note_step(self, module: LightningModule) -> None:
        """Note what a module holds, now that a step is over."""
        found = dict(_held_by(module))
        for name, before in self._held.items():
            now = found.get(name, [])
            kept = {id(one.tensor) for one in now}
            is_longer = len(now) > len(before) and all(id(x.tensor) in kept for x in before)
            old = {one.node for one in before}
            is_sum = any(x.node not in old and old & _nodes_before(x.tensor) for x in now)
            if (is_longer or is_sum) and name not in self.grown:
                self.grown.append(name)
        self._held = found

    def release(self) -> None:
        """Forget the tensors, whose graphs take memory."""
        self._held = {}


def _held_by(module: LightningModule) -> Iterator[tuple[str, list[_Held]]]:
    """Yield the attributes that hold tensors with a graph, with these."""
    for path, part in module.named_modules():
        if type(part).__module__.startswith("torchmetrics."):
            continue  # which detaches what it keeps from step to step
        kept = {name: value for name, value in vars(part).items() if name not in _OWN}
        kept |= kept.pop("_buffers", {})
        for name, value in kept.items():
            held = [_Held(x, x.grad_fn) for x in _tensors_in(value) if x.grad_fn is not None]
            if held:
                yield ".".join(filter(None, [module_name(path), name])), held


def _tensors_in(value: Any, depth: int = _DEPTH) -> Iterator[Tensor]:
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        yield value
    elif depth and isinstance(value, dict | list | tuple | deque):
        inner = list(value.values() if isinstance(value, dict) else value)[-_LAST:]
        for one in inner:
            yield from _tensors_in(one, depth - 1)


def _nodes_before(x: Tensor) -> Set[Any]:
    """Return the nodes of the graph that a backward pass from ``x`` reaches."""
    waiting, seen = [x.grad_fn], {x.grad_fn}
    while waiting:
        node: Any = waiting.pop()
        if node is None:
            continue
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                waiting.append(following)
    return seen
