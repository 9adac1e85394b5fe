"""Activations, losses and batches of a step, as tensors to read later."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_practices.advisor import ActivationLook, BatchLook, LossLook
from lightning_practices.callbacks._training_advisor.graph import Graph, Node
from lightning_practices.callbacks._training_advisor.readings import Readings

_SAMPLES = 64  # of a batch that are measured
_MOSTLY = 0.9  # share of the units from which on the dead ones are listed
_ENDS = {"tanh": (-0.99, 0.99), "sigmoid": (0.005, 0.995)}
_MODULES = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
_OF_CHANNELS = ("convolution", "batch_norm", "pool")
_NEAR = 3  # nodes before an activation that tell where its units are


class Forward:
    """Measures the forward pass by the graph of its loss.

    Args:
        module: The LightningModule.
        graph: The graph of the loss.
        optimizers: The index of the optimizer of each parameter, by name.
        readings: Takes the numbers.
    """

    def __init__(
        self, module: nn.Module, graph: Graph, optimizers: Mapping[str, int], readings: Readings
    ) -> None:
        self._module, self._readings = module, readings
        self._activations: list[tuple[tuple[str, ...], str, int]] = []
        self._losses: list[tuple[str, int]] = []
        for node in graph.activations:
            if node.layer is not None and self._counts(node, graph, optimizers):
                self._note_activation(node)
        for node in graph.nodes:
            for kind, values in _losses(node):
                self._losses.append((kind, readings.add(torch.stack(values))))

    @staticmethod
    def _counts(node: Node, graph: Graph, optimizers: Mapping[str, int]) -> bool:
        """Say whether an activation is looked at: not gates, nor the output of a generator."""
        if node.kind == "relu":
            return True
        after = graph.feeds(node)
        return (
            after is not None
            and node.layer is not None
            and optimizers.get(after.name) == optimizers.get(node.layer.name)
        )

    def _note_activation(self, node: Node) -> None:
        result = node.saved("result")
        if result is None or result.dim() < 2 or not result.numel():
            return
        result = result[:_SAMPLES]
        if node.kind == "relu":
            axis = 1 if _has_channels(node) else result.dim() - 1
            others = [i for i in range(result.dim()) if i != axis]
            measured = (result > 0).any(dim=others) if others else result > 0
        else:
            low, high = _ENDS[node.kind]
            measured = ((result < low) | (result > high)).float().mean()
        place = self._readings.add(measured)
        self._activations.append((self._names(node), node.kind, place))

    def _names(self, node: Node) -> tuple[str, ...]:
        """Return the names of the activation's module, if it follows its layer, and the layer's."""
        layer = "" if node.layer is None else node.layer.module
        parent, _, own = layer.rpartition(".")
        try:
            within = self._module.get_submodule(parent)
        except AttributeError:
            return (layer,)
        if isinstance(within, nn.Sequential):
            children = list(within.named_children())
            names = [name for name, _ in children]
            for name, child in children[names.index(own) + 1 :] if own in names else ():
                if isinstance(child, _MODULES[node.kind]):
                    return (f"{parent}.{name}" if parent else name, layer)
                if isinstance(child, nn.Linear | nn.modules.conv._ConvNd):
                    break
        return (layer,)

    def activations(self, numbers: list[list[float]]) -> Iterator[ActivationLook]:
        """Yield the activations, from the numbers that were read."""
        for modules, kind, place in self._activations:
            values = numbers[place]
            if kind != "relu":
                yield ActivationLook(modules, kind, saturated=values[0])
                continue
            dead = tuple(i for i, alive in enumerate(values) if not alive)
            is_listed = len(dead) >= _MOSTLY * len(values)
            yield ActivationLook(modules, kind, len(values), dead if is_listed else ())

    def losses(self, numbers: list[list[float]]) -> Iterator[LossLook]:
        """Yield the losses, from the numbers that were read."""
        for kind, place in self._losses:
            value, prior, classes, first = numbers[place]
            if math.isfinite(value) and math.isfinite(prior):
                yield LossLook(kind, value, prior, int(classes), int(first))


def _has_channels(node: Node) -> bool:
    """Say whether the units of an activation are along dimension 1, as after a convolution."""
    waiting = [node]
    for _ in range(_NEAR):
        waiting = [before for one in waiting for before in one.inputs]
        if any(word in one.kind for one in waiting for word in _OF_CHANNELS):
            return True
    return False


def _losses(node: Node) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield a loss's kind and its value, its prior's, the number of classes and the first class."""
    x, target = node.saved("self"), node.saved("target")
    if x is None or target is None or not target.numel():
        return
    nothing = torch.full((), -1.0, device=x.device)
    if node.kind in ("nll_loss", "nll_loss2_d", "nll_loss2d") and target.dtype == torch.long:
        yield "cross_entropy", _cross_entropy(node, x, target)
    elif node.kind == "binary_cross_entropy_with_logits":
        if node.saved("pos_weight") is None and node.saved("weight") is None:
            loss = nn.functional.binary_cross_entropy_with_logits(x.float(), target.float())
            yield "bce", [loss, _binary_prior(target.float()), nothing + 1, nothing]
    elif node.kind == "binary_cross_entropy" and node.saved("weight") is None:
        loss = nn.functional.binary_cross_entropy(x.float(), target.float())
        yield "bce", [loss, _binary_prior(target.float()), nothing + 1, nothing]
    elif node.kind == "mse_loss" and target.shape == x.shape and len(target) >= 8:
        wanted = target.float()
        prior = wanted.var(dim=0).mean()
        yield "mse", [(x.float() - wanted).square().mean(), prior, nothing + 1, nothing]


def _cross_entropy(node: Node, x: Tensor, target: Tensor) -> list[Tensor]:
    classes = x.shape[1] if x.dim() > 1 else x.shape[0]
    weight = node.saved("weight")
    ignored = int(getattr(node.raw, "_saved_ignore_index", -100))
    # An index of -100 is kept in a field without sign.
    ignored = ignored - 2**64 if ignored >= 2**63 else ignored
    kept = target != ignored
    safe = target.where(kept, 0)
    chosen = x.gather(1, safe.unsqueeze(1)).squeeze(1) if x.dim() > 1 else x[safe]
    weights = kept.float() if weight is None else weight.float()[safe] * kept
    total = weights.sum().clamp_min(1e-12)
    value = -(chosen.float().where(kept, 0.0) * weights).sum() / total
    counts = torch.zeros(classes, device=x.device).scatter_add_(
        0, safe.reshape(-1), weights.reshape(-1)
    )
    shares = counts / total
    seen = (counts > 0).sum()
    # A batch has fewer classes, and less equal shares, than the data: Miller and Madow, 1955.
    entropy = torch.special.entr(shares).sum() + (seen - 1) / (2 * kept.sum().clamp_min(1))
    return [value, entropy.clamp_max(math.log(classes)), seen.float(), safe.reshape(-1)[0].float()]


def _binary_prior(target: Tensor) -> Tensor:
    share = target.mean(dim=0)
    entropy: Tensor = torch.special.entr(share) + torch.special.entr(1 - share)
    return entropy.mean()


class BatchNumbers:
    """Numbers by which a batch is recognised.

    Args:
        batch: The batch.
        readings: Takes the numbers.
    """

    def __init__(self, batch: Any, readings: Readings) -> None:
        leaves = [x for x in tree_leaves(batch) if isinstance(x, Tensor) and x.dim() and x.numel()]
        leaves = [x for x in leaves if not x.is_sparse and not x.is_complex()]
        self._place: int | None = None
        self._samples = 0
        if leaves:
            largest = max(leaves, key=Tensor.numel)
            self._samples = len(largest)
            rows = largest[:_SAMPLES].reshape(min(len(largest), _SAMPLES), -1)
            equal = (rows[1:] == rows[:1]).all(dim=1).float()
            sums = [x[:_SAMPLES].float().sum() for x in leaves]
            share = equal.mean() if len(equal) else torch.zeros((), device=rows.device)
            first = largest.device
            self._place = readings.add(torch.stack([x.to(first) for x in (share, *sums)]))

    def look(self, numbers: list[list[float]]) -> BatchLook | None:
        """Return the batch, from the numbers that were read."""
        if self._place is None:
            return None
        equal, *sums = numbers[self._place]
        return BatchLook(tuple(sums), equal, self._samples)
