"""Audit how signals and gradients pass through the layers of a model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from typing_extensions import override

from lightning_practices._arguments import check_path
from lightning_practices._names import check_module
from lightning_practices._tables import as_text
from lightning_practices.init._activations import Activation
from lightning_practices.init._flow import Flow
from lightning_practices.init._initialize import check_ready
from lightning_practices.init._run import unchanged
from lightning_practices.init._trace import Node, Recorder, record

_BINS = 60  # of a histogram
_FLAT = 0.05  # share of the steepest slope, below which an activation is saturated
_RANGES = {"tanh": (-1.0, 1.0), "hardtanh": (-1.0, 1.0), "softsign": (-1.0, 1.0),
           "sigmoid": (0.0, 1.0)}  # fmt: skip


@dataclass(frozen=True)
class AuditedLayer:
    """The output of a layer on a batch: of the activation after it, or of the layer itself.

    Attributes:
        name: Name of the layer.
        activation: The activation after it; ``"linear"`` for none.
        mean: Mean of the output.
        std: Standard deviation of the output.
        ratio: ``std`` divided by that of the model's input; by that of the first layer if the input
            holds no floats.
        saturated: Share of the outputs where the activation has less than 5 % of its steepest
            slope; nan for activations that don't saturate on both sides.
        dead: Share of the units whose output is the same at all samples and positions.
        gradient_std: Standard deviation of the gradient by this output; nan if there is none.
        histogram: Numbers of outputs in bins of equal width.
        low: Lower end of the bins.
        high: Upper end of the bins.

    Example:
        >>> from lightning_practices.init import audit
        >>> model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 3))
        >>> model[0].weight.data *= 100  # far too large
        >>> layer = audit(model, torch.randn(128, 16)).layers[0]
        >>> layer.name, layer.activation, layer.saturated > 0.8
        ('0', 'tanh', True)
    """

    name: str
    activation: str
    mean: float
    std: float
    ratio: float
    saturated: float
    dead: float
    gradient_std: float
    histogram: tuple[float, ...] = field(repr=False)
    low: float = field(repr=False)
    high: float = field(repr=False)


@dataclass(repr=False)
class Audit:
    """What :func:`audit` has seen. ``print`` shows a table, and :meth:`plot` draws a picture.

    Attributes:
        layers: The layers in the order of their calls.
        input_std: Standard deviation of the model's input; nan if it holds no floats.

    Example:
        >>> from lightning_practices.init import audit
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))
        >>> for layer in (model[0], model[2]):
        ...     layer.weight.data *= 0.001  # too small: signals and gradients die out
        ...     layer.bias.data *= 0.0
        >>> report = audit(model, torch.randn(128, 64))
        >>> [layer.ratio < 0.01 for layer in report.layers]
        [True, True]
    """

    layers: list[AuditedLayer]
    input_std: float

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw the histogram of each layer, and the standard deviations by depth.

        The picture has the histograms of at most 12 layers, spread evenly over the depth.

        Args:
            path: Path of the picture. Its suffix chooses the format, such as ``.png`` or ``.svg``.

        Raises:
            ImportError: If matplotlib is not installed.
            TypeError: If ``path`` is not a path.
        """
        from lightning_practices.init._plot import draw

        draw(self.layers, self.input_std, check_path("path", path, "picture"))

    def __rich__(self) -> Table:
        columns = ("activation", "mean", "std", "to input", "saturated", "dead", "gradient std")
        table = Table("layer")
        table.columns[0].overflow = "fold"
        for column in columns:
            table.add_column(column, justify="right")
        for layer in self.layers:
            table.add_row(
                layer.name, layer.activation, _number(layer.mean), _number(layer.std),
                _number(layer.ratio), _share(layer.saturated), _share(layer.dead),
                _number(layer.gradient_std),
            )  # fmt: skip
        return table

    @override
    def __str__(self) -> str:
        return as_text(self)

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.layers)} layers)"


def audit(model: nn.Module, batch: Any) -> Audit:
    r"""Run a model forward and backward once, and return statistics of each layer's output.

    A network trains well if activations and gradients have about the same scale in all layers.
    They vanish with weights that are too small, and explode or saturate the activations with
    weights that are too large.

    The gradients are those of :math:`\sum_i y_i e_i`, where :math:`y` is the model's output and
    :math:`e` is standard normal noise, the same in each call. So they show how the model passes
    gradients on, whatever the loss; only their ratios from layer to layer mean something. Gradients
    within a residual branch are 0 while the scale of its last norm is 0, as
    :func:`initialize` sets it: the branch begins to train after the first step.

    The model is as before afterwards, bit for bit: weights, ``.grad``, buffers, modes, hooks and
    random states. It runs in eval mode, without dropout; norms keep their mode, so that batch norms
    in training use the statistics of the batch. Layers are linear and convolution layers and
    embeddings, in the order of their first calls.

    Source: lectures S1 and S4, "Weight initialization"; Glorot and Bengio, 2010, *Understanding the
    difficulty of training deep feedforward neural networks*.

    Args:
        model: The model.
        batch: A batch: a tensor, a list that begins with one, or a mapping of keyword arguments, on
            the model's device.

    Returns:
        The statistics of each layer.

    Raises:
        TypeError: If ``model`` is not a module, or the batch none of these.
        ValueError: If a parameter has no shape yet, or is on the meta device.

    Example:
        >>> from lightning_practices.init import audit
        >>> model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 3))
        >>> result = audit(model, torch.randn(128, 16))
        >>> [(layer.name, layer.activation) for layer in result.layers]
        [('0', 'tanh'), ('2', 'linear')]
        >>> all(0.1 < layer.ratio < 1 for layer in result.layers)
        True
    """
    check_module(model)
    check_ready(model, {*model.modules()})
    inputs: list[Tensor] = []
    seen: dict[int, _Seen] = {}
    with unchanged(model, norms_as_they_are=True), torch.enable_grad():
        recorder = Recorder(model, lambda place, x: seen.update({place: _Seen(x)}))
        output = record(model, _with_gradients(batch, inputs), recorder)
        _backward(model, output, inputs)
    return _audit_of(recorder, seen, inputs)


class _Seen:
    """Statistics of a tensor, and of the gradient by it once there is one."""

    def __init__(self, x: Tensor) -> None:
        self.gradient_std = math.nan
        self.values = _Values.of(x.detach())
        self.saturated: dict[str, float] = {}
        wide = _wide(x.detach())
        for name in _RANGES:
            self.saturated[name] = float((_slope(name, wide) < _FLAT).double().mean())
        if x.requires_grad:
            x.register_hook(self._note)  # type: ignore[no-untyped-call]

    def _note(self, gradient: Tensor) -> None:
        self.gradient_std = float(_wide(gradient).std(correction=0))


@dataclass(frozen=True)
class _Values:
    """Statistics of a tensor's elements.

    Attributes:
        mean: Their mean.
        std: Their standard deviation.
        dead: Share of the units with one value only, where units are along dimension 1 and -1.
        histogram: The histogram from ``low`` to ``high``.
    """

    mean: float
    std: float
    dead: Mapping[int, float]
    histogram: Mapping[tuple[float, float] | None, tuple[float, ...]]
    low: float
    high: float

    @classmethod
    def of(cls, x: Tensor) -> "_Values":
        wide = _wide(x)
        low, high = (float(end) for end in wide.aminmax()) if wide.numel() else (0.0, 0.0)
        high = high if high > low else low + 1
        histograms: dict[tuple[float, float] | None, tuple[float, ...]] = {}
        for ends in (None, *set(_RANGES.values())):
            if math.isfinite(low) and math.isfinite(high):
                first, last = ends or (low, high)
                counts = torch.histc(wide, _BINS, first, last)
                histograms[ends] = tuple(counts.tolist())
            else:
                histograms[ends] = (0.0,) * _BINS
        dead = {dim: _constant(wide, dim) for dim in (1, -1)}
        std = float(wide.std(correction=0)) if wide.numel() else math.nan
        return cls(float(wide.mean()), std, dead, histograms, low, high)


def _constant(x: Tensor, dim: int) -> float:
    """Return the share of the units along a dimension that have one value only."""
    if x.dim() < 2 or x.numel() <= x.shape[dim]:
        return math.nan
    units = x.movedim(dim, 0).flatten(1)
    low, high = units.aminmax(dim=1)
    return float((low == high).double().mean())


def _slope(name: str, y: Tensor) -> Tensor:
    """Return the slope of an activation at its outputs, as a share of the steepest."""
    if name == "tanh":
        return 1 - y.square()
    if name == "sigmoid":
        return 4 * y * (1 - y)
    if name == "softsign":
        return (1 - y.abs()).square()
    return (y.abs() < 1).to(y)


def _with_gradients(batch: Any, inputs: list[Tensor]) -> Any:
    """Return a batch whose floating point tensors need gradients, and collect their leaves."""

    def copied(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        inputs.append(x.detach().clone().requires_grad_())
        return inputs[-1].clone()  # no leaf, which the model couldn't change in place

    return tree_map(copied, batch)


def _backward(model: nn.Module, output: Any, inputs: list[Tensor]) -> None:
    results = [
        y
        for y in tree_leaves(output)
        if isinstance(y, Tensor) and y.requires_grad and y.is_floating_point()
    ]
    sources = [p for p in model.parameters() if p.requires_grad] + inputs
    if not results or not sources:
        return
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(y.shape, generator=generator).to(y) for y in results]
    torch.autograd.grad(results, sources, noise, allow_unused=True)


def _audit_of(recorder: Recorder, seen: dict[int, _Seen], inputs: list[Tensor]) -> Audit:
    flow = Flow(recorder)
    found = torch.cat([_wide(x.detach()).flatten().cpu() for x in inputs]) if inputs else None
    input_std = math.nan if found is None else float(found.std(correction=0))
    layers, known = [], set()
    for place, node in flow.layers():
        if not node.weights or node.weights[0] in known or place not in seen:
            continue
        known.add(node.weights[0])
        end = flow.activation_call(place)
        activation = flow.following(node.weights[0]) or Activation("unknown")
        shown = seen.get(end, seen[place])
        layers.append(_row(node, activation, shown, input_std))
    if layers and math.isnan(input_std):
        first = layers[0].std or math.nan
        layers = [replace(layer, ratio=layer.std / first) for layer in layers]
    return Audit(layers, input_std)


def _row(node: Node, activation: Activation, seen: _Seen, input_std: float) -> AuditedLayer:
    name, _, own = node.weights[0].rpartition(".")
    ends = _RANGES.get(activation.name)
    values = seen.values
    low, high = ends or (values.low, values.high)
    return AuditedLayer(
        name=name if own == "weight" else node.weights[0],
        activation=str(activation),
        mean=values.mean,
        std=values.std,
        ratio=values.std / input_std if input_std else math.nan,
        saturated=seen.saturated.get(activation.name, math.nan),
        dead=values.dead[1 if "conv" in node.op else -1],
        gradient_std=seen.gradient_std,
        histogram=values.histogram[ends],
        low=low,
        high=high,
    )


def _wide(x: Tensor) -> Tensor:
    """Return a real tensor of 32 or 64 bits, on a device that knows it."""
    x = x.abs() if x.is_complex() else x
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0%}"
