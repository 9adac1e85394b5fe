"""Tensors with a graph that attributes of a module keep from one step to the next."""

from collections.abc import Iterator, Set
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_practices._names import module_name
from lightning_practices.advisor._plain_objects import held_by, is_plain

_DEPTH = 4  # of lists, dicts and objects within each other
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
        self._has_loss = False  # in the present step
        self._waiting: set[Any] = set()  # nodes since which no loss was differentiated

    @property
    def is_open(self) -> bool:
        """Whether another step would tell what becomes of the tensors that are held."""
        return bool(self._held)

    def note_loss(self, loss: Tensor) -> None:
        """Note which of the tensors of the steps before a loss depends on.

        Several steps may make one graph, such as those of an episode, until the first loss.
        """
        nodes: Set[Any] = _nodes_before(loss) if self._held else frozenset()
        nodes, self._waiting, self._has_loss = nodes - self._waiting, set(), True
        for name, held in self._held.items():
            if name not in self.carried and any(one.node in nodes for one in held):
                self.carried.append(name)

    def note_step(self, module: LightningModule) -> None:
        """Note what a module holds, now that a step is over."""
        found = dict(_held_by(module))
        if not self._has_loss:
            earlier = {one.node for held in self._held.values() for one in held}
            self._waiting |= {one.node for held in found.values() for one in held} - earlier
        for name, before in self._held.items() if self._has_loss else ():
            now = found.get(name, [])
            kept = {id(one.tensor) for one in now}
            is_longer = len(now) > len(before) and all(id(x.tensor) in kept for x in before)
            old = {one.node for one in before}
            is_sum = any(x.node not in old and old & _nodes_before(x.tensor) for x in now)
            if (is_longer or is_sum) and name not in self.grown:
                self.grown.append(name)
        self._held, self._has_loss = found, False

    def release(self) -> None:
        """Forget the tensors, whose graphs take memory."""
        self._held, self._waiting = {}, set()


def _held_by(module: LightningModule) -> Iterator[tuple[str, list[_Held]]]:
    """Yield the attributes that hold tensors with a graph, with these."""
    found: dict[str, list[_Held]] = {}
    for name, x in tensors_held(module):
        if x.grad_fn is not None:
            found.setdefault(name, []).append(_Held(x, x.grad_fn))
    yield from found.items()


def tensors_held(module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that attributes and buffers hold, each with the attribute's name.

    Attributes of plain objects are named by their own place, as ``memory[0].state``.
    """
    known = {id(part) for part in module.modules()}
    for path, part in module.named_modules():
        if type(part).__module__.startswith("torchmetrics."):
            continue  # which detaches what it keeps from step to step
        kept = {name: value for name, value in vars(part).items() if name not in _OWN}
        kept |= kept.pop("_buffers", {})
        for name, value in kept.items():
            for place, x in _tensors_in(name, value, known):
                yield ".".join(filter(None, [module_name(path), place])), x


def _tensors_in(
    place: str, value: Any, known: set[int], depth: int = _DEPTH
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors within a value, each with the attribute that holds it.

    Args:
        place: The attribute that holds the value.
        value: The value.
        known: ``id`` of modules and plain objects that aren't looked into. Those that are, are
            added: objects may refer to each other.
        depth: Of values within each other that are looked into.
    """
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        yield place, value
    elif depth and isinstance(value, nn.Module) and id(value) not in known:
        known.update(id(part) for part in value.modules())
        for name, part in value.named_modules():
            for key, inner in vars(part).items():
                if key not in _OWN:
                    at = ".".join(filter(None, [place, name, key]))
                    yield from _tensors_in(at, inner, known, depth - 1)
    elif depth and id(value) not in known:
        is_object = is_plain(value)
        known.update([id(value)] if is_object else [])
        for suffix, inner in held_by(value):
            is_named = is_object or is_plain(inner) or isinstance(inner, nn.Module)
            at = place + suffix if is_named else place
            yield from _tensors_in(at, inner, known, depth - 1)


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
