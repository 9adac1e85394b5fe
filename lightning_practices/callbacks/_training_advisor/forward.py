"""Activations, losses and batches of a step, as tensors to read later."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_practices.advisor import ActivationLook, BatchLook, LossLook
from lightning_practices.callbacks._training_advisor.graph import Graph, Node
from lightning_practices.callbacks._training_advisor.losses import measured
from lightning_practices.callbacks._training_advisor.readings import Readings
from lightning_practices.callbacks._training_advisor.targets import Given

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

    Attributes:
        is_whole: Whether the losses that were measured are all terms of the loss.
    """

    def __init__(
        self, module: nn.Module, graph: Graph, optimizers: Mapping[str, int], readings: Readings
    ) -> None:
        self._module, self._readings, self._graph = module, readings, graph
        self._activations: list[tuple[tuple[str, ...], str, int]] = []
        self._losses: list[tuple[str, int]] = []
        for node in graph.activations:
            if node.layer is not None and self._counts(node, graph, optimizers):
                self._note_activation(node)
        self.is_whole = False

    def note_losses(self, loss: Tensor, given: Given) -> None:
        """Measure the losses that torch's functions have computed.

        Args:
            loss: The whole loss of the step, without the scale that Lightning gives it.
            given: The batch, from which targets may come.
        """
        nodes = []
        for node in self._graph.nodes:
            for kind, values in measured(node, given):
                nodes.append(node)
                total = loss.to(values[0].device).reshape(())
                self._losses.append((kind, self._readings.add(torch.stack([*values, total]))))
        self.is_whole = not self._graph.has_other_terms(nodes)

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
            value, prior, classes, first, is_data, total = numbers[place]
            if math.isfinite(value) and math.isfinite(prior):
                yield LossLook(kind, value, prior, int(classes), int(first), is_data > 0, total)


def _has_channels(node: Node) -> bool:
    """Say whether the units of an activation are along dimension 1, as after a convolution."""
    waiting = [node]
    for _ in range(_NEAR):
        waiting = [before for one in waiting for before in one.inputs]
        if any(word in one.kind for one in waiting for word in _OF_CHANNELS):
            return True
    return False


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
            varies = [(x[:_SAMPLES] != x.reshape(-1)[0]).any().float() for x in leaves]
            first = largest.device
            varying = torch.stack([x.to(first) for x in varies]).sum()
            self._place = readings.add(torch.stack([x.to(first) for x in (share, varying, *sums)]))

    def look(self, numbers: list[list[float]]) -> BatchLook | None:
        """Return the batch, from the numbers that were read."""
        if self._place is None:
            return None
        equal, varying, *sums = numbers[self._place]
        return BatchLook(tuple(sums), equal, self._samples, not varying)
