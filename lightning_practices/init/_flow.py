"""What follows the weights of a traced model: activations, and the ends of residual branches."""

from collections import defaultdict
from collections.abc import Iterator

from lightning_practices.init._activations import LINEAR, Activation
from lightning_practices.init._trace import Node, Recorder

# Activations that a model computes by several functions end in a product with their input.
_WRITTEN_OUT = {
    "sigmoid": "silu",  # x * sigmoid(x)
    "tanh": "gelu",  # x / 2 * (1 + tanh(...))
    "erf": "gelu",  # x / 2 * (1 + erf(x / sqrt(2)))
    "softplus": "mish",  # x * tanh(softplus(x))
    "relu6": "hardswish",  # x * relu6(x + 3) / 6
    "hardtanh": "hardswish",
}
_PRODUCTS = ("mul", "__mul__", "__rmul__", "__imul__")
_SCALES = (*_PRODUCTS, "div", "__truediv__")
_PASSED = ("pass", "norm", "add")


class Flow:
    """Answers questions about a recorded graph.

    Attributes:
        attends: Whether the model computes attention.
        branches: The number of residual branches that end in a layer with weights.
        projections: Names of the weights at the ends of these branches.
        last_norms: Names of the scales of norms that stand last in a branch, before the addition.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._nodes = recorder.nodes
        self._users: dict[int, list[int]] = defaultdict(list)
        self._above: list[int] = []  # the nodes before each node, and itself, as bits
        for place, node in enumerate(self._nodes):
            above = 1 << place
            for before in node.inputs:
                self._users[before].append(place)
                above |= self._above[before]
            self._above.append(above)
        self._outputs = set(recorder.outputs)
        self._calls: dict[str, int] = {}
        for place, node in enumerate(self._nodes):
            if node.kind == "layer":
                for name in node.weights:
                    self._calls.setdefault(name, place)
        self.attends = any(node.kind == "attention" for node in self._nodes)
        self.branches = 0
        self.projections: set[str] = set()
        self.last_norms: set[str] = set()
        for branch in self._branches():
            ends = {
                name for place in self._last_layers(branch) for name in self._nodes[place].weights
            }
            self.branches += bool(ends)
            self.projections |= ends
            if norm := self._last_norm(branch):
                self.last_norms.add(norm)

    def following(self, weight: str) -> Activation | None:
        """Return the activation after a weight's layer; ``None`` if the trace doesn't tell."""
        place = self._calls.get(weight)
        return None if place is None else self._resolve(place)[0]

    def activation_call(self, layer: int) -> int:
        """Return the place of the activation after a layer's call, or of the call itself."""
        return self._resolve(layer)[1]

    def layers(self) -> Iterator[tuple[int, Node]]:
        """Yield the calls of layers with weights, with their places."""
        for place, node in enumerate(self._nodes):
            if node.kind == "layer":
                yield place, node

    def _resolve(self, layer: int) -> tuple[Activation | None, int]:
        """Return the activation that is first to get the result of a layer, and its place."""
        reached, seen, is_output = [layer], {layer}, layer in self._outputs
        ends: list[int] = []
        while reached:
            for user in self._users[reached.pop()]:
                if user in seen:
                    continue
                seen.add(user)
                if self._nodes[user].kind in _PASSED:
                    reached.append(user)
                    is_output |= user in self._outputs
                else:
                    ends.append(user)
        if not ends:
            return (LINEAR if is_output else None), layer
        first = min(ends)
        found = self._nodes[first].activation
        if found is None:
            return LINEAR, layer
        name, product = self._written_out(first, seen)
        if name is not None:
            return Activation(name), product
        return (found, first) if found.name != "erf" else (None, layer)

    def _written_out(self, activation: int, before: set[int]) -> tuple[str | None, int]:
        """Return the activation of which a function is a part, and the product at its end."""
        name = _WRITTEN_OUT.get(self._nodes[activation].op)
        reached, seen = [activation] if name else [], {activation}
        while reached:
            place = reached.pop()
            for user in self._users[place]:
                node = self._nodes[user]
                if node.op in _PRODUCTS:
                    others = [each for each in node.inputs if each not in seen]
                    if others and all(each in before and self._leads(each, activation)
                                      for each in others):  # fmt: skip
                        return name, user
                if user not in seen and node.kind in ("pass", "activation"):
                    seen.add(user)
                    reached.append(user)
        return None, activation

    def _leads(self, start: int, end: int) -> bool:
        """Say whether ``end`` is computed from ``start``, or from the value that start scales."""
        node = self._nodes[start]
        scaled = set(node.inputs) if node.op in _SCALES else set()
        return bool(self._above[end] >> start & 1 or scaled & set(self._sources(end)))

    def _sources(self, place: int) -> Iterator[int]:
        """Yield the nodes before a node, back to the last layer."""
        reached = [place]
        while reached:
            for before in self._nodes[reached.pop()].inputs:
                yield before
                if self._nodes[before].kind in _PASSED:
                    reached.append(before)

    def _branches(self) -> Iterator[int]:
        """Yield the last node of each residual branch."""
        for node in self._nodes:
            if node.kind != "add" or len(set(node.inputs)) != 2:
                continue
            a, b = node.inputs
            if self._above[a] >> b & 1 or self._above[b] >> a & 1:
                branch, stream = (a, b) if self._above[a] >> b & 1 else (b, a)
                if self._path(branch, self._above[stream])[0]:
                    yield branch
            else:
                common = self._above[a] & self._above[b]
                paths = [(self._path(end, common), end) for end in (a, b)]
                (short, _), (long, end) = sorted(paths, key=lambda path: path[0][0])
                if common and short[0] <= 1 and not short[1] and long[0] >= 2:
                    yield end

    def _path(self, end: int, common: int) -> tuple[int, bool]:
        """Return the number of layers on the way to a node, and whether it has an activation."""
        own = self._above[end] & ~common
        nodes = [node for place, node in enumerate(self._nodes) if own >> place & 1]
        return (
            sum(node.kind == "layer" for node in nodes),
            any(node.kind in ("activation", "attention") for node in nodes),
        )

    def _last_layers(self, end: int) -> Iterator[int]:
        """Yield the layers whose results reach the end of a branch through no other layer."""
        reached, seen = [end], {end}
        while reached:
            place = reached.pop()
            node = self._nodes[place]
            if node.kind == "layer":
                yield place
            elif node.kind in _PASSED:
                new = set(node.inputs) - seen
                seen |= new
                reached += new

    def _last_norm(self, end: int) -> str | None:
        """Return the scale of the norm that is last in a branch, but for dropout and the like."""
        place = end
        while self._nodes[place].kind == "pass" and len(self._nodes[place].inputs) == 1:
            (place,) = self._nodes[place].inputs
        node = self._nodes[place]
        if node.kind != "norm":
            return None
        return next((name for name in node.weights if name.endswith("weight")), None)
