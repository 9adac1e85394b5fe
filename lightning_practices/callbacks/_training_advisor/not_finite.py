"""Where the first number that isn't finite was seen, while the step that has it runs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from lightning_practices._names import plain_name
from lightning_practices.advisor import NotFinite
from lightning_practices.callbacks._trainer.sharding import local
from lightning_practices.callbacks._training_advisor.graph import Graph, Node

# Inputs for which a function isn't finite.
_SINGULAR: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "log": ("self", lambda x: x <= 0),
    "log2": ("self", lambda x: x <= 0),
    "log10": ("self", lambda x: x <= 0),
    "log1p": ("self", lambda x: x <= -1),
    "div": ("other", lambda x: x == 0),
}
# Functions that may get infinite numbers on purpose, for elements that are masked.
_MASKED = ("softmax", "nll_loss", "logsumexp", "attention")


def find(module: nn.Module, graph: Graph, batch: Any, step: int) -> NotFinite:
    """Return the place of the first number that isn't finite, of a loss that isn't.

    The host waits for the device.

    Args:
        module: The LightningModule.
        graph: The graph of the loss.
        batch: The batch.
        step: Optimizer steps taken.
    """
    for path, x in tree_flatten_with_path(batch)[0]:
        if isinstance(x, Tensor) and x.is_floating_point() and not _is_finite(x):
            return NotFinite(step, "batch", f"batch{keystr(path)}")
    bad = [plain_name(name) for name, p in module.named_parameters() if not _is_finite(p)]
    if bad:
        return of_parameter("parameter", bad, graph.places, step)
    for node in graph.nodes:
        if (found := _culprit(node)) is not None:
            modules = () if found.layer is None else (found.layer.module,)
            return NotFinite(step, "function", found.kind, modules)
    return NotFinite(step, "")


def of_parameter(what: str, names: list[str], places: dict[str, int], step: int) -> NotFinite:
    """Return the place of gradients or parameters that aren't finite.

    A backward pass makes all of them so from the culprit to the input: the last one in the order of
    the forward pass is next to it.
    """
    last = max(names, key=lambda name: places.get(name, -1))
    return NotFinite(step, what, last, (last.rpartition(".")[0],))


def _culprit(node: Node) -> Node | None:
    """Return the node that has made numbers which aren't finite: ``node``, or one before it."""
    if node.kind in _SINGULAR:
        name, is_singular = _SINGULAR[node.kind]
        x = node.saved(name)
        if x is not None and bool(is_singular(x).any()):
            return node
    is_masked = any(word in node.kind for word in _MASKED)
    for name, x in node.tensors():
        wrong = x.isnan().any() if is_masked else ~torch.isfinite(x).all()
        if bool(wrong):
            return node if name.startswith("result") or not node.inputs else node.inputs[-1]
    return None


def _is_finite(x: Tensor) -> bool:
    shard = local(x.detach())
    dense = shard.coalesce().values() if shard.is_sparse else shard
    return bool(torch.isfinite(dense).all())
