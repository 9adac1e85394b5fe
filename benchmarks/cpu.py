"""``cpu``: what each public function costs on the CPU, against what it replaces, pair by pair."""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, Literal

import torch
import torchvision
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

import lightning_kernels
from benchmarks.pairs import compare
from benchmarks.results import Results, Row, add_out
from lightning_practices import nn

GOAL = 1.05  # at most this many times what the peer takes
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHAPES = ((1, 128), (256, 1024), (8, 197, 768))  # a single row, a small batch, ViT-B's tokens
_DROP_RATE = 0.1
_GROUPS = 4

Shape = tuple[int, ...]
Direction = Literal["forward", "both"]


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Two callables on the same inputs, and which of these to differentiate with respect to."""

    ours: Callable[[], Any]
    peer: Callable[[], Any]
    inputs: tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True)
class Op:
    """A public function or layer and what it is measured against.

    Attributes:
        peer: Name of what it replaces.
        make: Makes both for a shape and a type.
        shapes: Input shapes.
        directions: ``"forward"``, recording for the backward pass, or ``"both"`` passes.
    """

    peer: str
    make: Callable[[Shape, torch.dtype], Candidates]
    shapes: tuple[Shape, ...] = SHAPES
    directions: tuple[Direction, ...] = ("forward", "both")


@dataclasses.dataclass(frozen=True)
class Case:
    """One row to measure."""

    op: str
    shape: Shape
    dtype: str
    direction: Direction

    @property
    def key(self) -> Row:
        """What tells its row from the others."""
        shape = "x".join(map(str, self.shape))
        key = {"op": self.op, "peer": OPS[self.op].peer, "shape": shape}
        return {**key, "dtype": self.dtype, "direction": self.direction}


def _random(shape: Shape, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def _on_x(shape: Shape, dtype: torch.dtype, *, ours: Any, peer: Any) -> Candidates:
    """Apply each to a random tensor; ``ours`` and ``peer`` are functions or layers."""
    x = _random(shape, dtype)
    parameters = ours.parameters() if isinstance(ours, torch.nn.Module) else ()
    same = peer.parameters() if isinstance(peer, torch.nn.Module) else ()
    inputs = (x, *parameters, *same)
    return Candidates(lambda: ours(x), lambda: peer(x), inputs)


def _layer_norm(shape: Shape, dtype: torch.dtype) -> Candidates:
    x, weight, bias = (_random(part, dtype) for part in (shape, shape[-1:], shape[-1:]))
    arguments = (x, shape[-1:], weight, bias)
    return Candidates(
        lambda: lightning_kernels.layer_norm(*arguments),
        lambda: torch.nn.functional.layer_norm(*arguments),
        (x, weight, bias),
    )


def _rms_norm(shape: Shape, dtype: torch.dtype) -> Candidates:
    x, weight = _random(shape, dtype), _random(shape[-1:], dtype)
    arguments = (x, shape[-1:], weight)
    return Candidates(
        lambda: lightning_kernels.rms_norm(*arguments),
        lambda: torch.nn.functional.rms_norm(*arguments),
        (x, weight),
    )


def _add_norm(
    shape: Shape, dtype: torch.dtype, *, norm: str = "layer_norm", layer: bool = False
) -> Candidates:
    """Compare with dropout, addition and norm, one after the other, of which the norm is used."""
    x, residual = (_random(shape, dtype) for _ in range(2))
    functional, rows = torch.nn.functional, shape[-1:]
    count = 2 if norm == "layer_norm" else 1
    parameters = [torch.ones(rows, dtype=dtype, requires_grad=True) for _ in range(count)]

    def peer() -> Tensor:
        z = residual + functional.dropout(x, _DROP_RATE)
        y: Tensor = getattr(functional, norm)(z, rows, *parameters, eps=1e-5)
        return y

    def ours() -> Tensor:
        results: tuple[Tensor, Tensor]
        if layer:
            results = module(x, residual)
        else:
            function = getattr(lightning_kernels, f"add_dropout_{norm}")
            results = function(x, residual, rows, *parameters, p=_DROP_RATE, eps=1e-5)
        return results[0]

    module = nn.AddDropoutLayerNorm(shape[-1], _DROP_RATE, dtype=dtype)
    return Candidates(
        ours, peer, (x, residual, *(module.parameters() if layer else ()), *parameters)
    )


def _rms_norm_layer(shape: Shape, dtype: torch.dtype) -> Candidates:
    ours, peer = (kind(shape[-1], dtype=dtype) for kind in (nn.RMSNorm, torch.nn.RMSNorm))
    return _on_x(shape, dtype, ours=ours, peer=peer)


def _layer_norm_layer(shape: Shape, dtype: torch.dtype) -> Candidates:
    ours, peer = (kind(shape[-1], dtype=dtype) for kind in (nn.LayerNorm, torch.nn.LayerNorm))
    return _on_x(shape, dtype, ours=ours, peer=peer)


def _layer_norm2d(shape: Shape, dtype: torch.dtype) -> Candidates:
    ours, peer = (
        kind(shape[1], dtype=dtype)
        for kind in (nn.LayerNorm2d, torchvision.models.convnext.LayerNorm2d)
    )
    return _on_x(shape, dtype, ours=ours, peer=peer)


def _batch_norm(shape: Shape, dtype: torch.dtype) -> Candidates:
    x, weight, bias = (_random(part, dtype) for part in (shape, shape[1:2], shape[1:2]))
    running = torch.zeros(shape[1:2], dtype=dtype), torch.ones(shape[1:2], dtype=dtype)
    arguments = (x, *running, weight, bias, True)
    return Candidates(
        lambda: lightning_kernels.batch_norm(*arguments),
        lambda: torch.nn.functional.batch_norm(*arguments),
        (x, weight, bias),
    )


def _batch_norm_layer(shape: Shape, dtype: torch.dtype, *, name: str) -> Candidates:
    ours, peer = (getattr(kind, name)(shape[1], dtype=dtype) for kind in (nn, torch.nn))
    return _on_x(shape, dtype, ours=ours, peer=peer)


def _group_norm(shape: Shape, dtype: torch.dtype) -> Candidates:
    x, weight, bias = (_random(part, dtype) for part in (shape, shape[1:2], shape[1:2]))
    arguments = (x, _GROUPS, weight, bias)
    return Candidates(
        lambda: lightning_kernels.group_norm(*arguments),
        lambda: torch.nn.functional.group_norm(*arguments),
        (x, weight, bias),
    )


def _group_norm_layer(shape: Shape, dtype: torch.dtype) -> Candidates:
    ours, peer = (kind.GroupNorm(_GROUPS, shape[1], dtype=dtype) for kind in (nn, torch.nn))
    return _on_x(shape, dtype, ours=ours, peer=peer)


def _instance_norm(shape: Shape, dtype: torch.dtype) -> Candidates:
    x, weight, bias = (_random(part, dtype) for part in (shape, shape[1:2], shape[1:2]))
    arguments = (x, None, None, weight, bias)
    return Candidates(
        lambda: lightning_kernels.instance_norm(*arguments),
        lambda: torch.nn.functional.instance_norm(*arguments),
        (x, weight, bias),
    )


def _instance_norm_layer(shape: Shape, dtype: torch.dtype, *, name: str) -> Candidates:
    ours, peer = (
        getattr(kind, name)(shape[1], affine=True, dtype=dtype) for kind in (nn, torch.nn)
    )
    return _on_x(shape, dtype, ours=ours, peer=peer)


def _dropout_of_channels(shape: Shape, dtype: torch.dtype, *, name: str) -> Candidates:
    ours, peer = (
        functools.partial(getattr(room, name), p=_DROP_RATE, training=True)
        for room in (lightning_kernels, torch.nn.functional)
    )
    return _on_x(shape, dtype, ours=ours, peer=peer)


def _stochastic_depth(shape: Shape, dtype: torch.dtype) -> Candidates:
    x, residual = (_random(shape, dtype) for _ in range(2))
    return Candidates(
        lambda: lightning_kernels.stochastic_depth(x, _DROP_RATE, "row", residual=residual),
        lambda: residual + torchvision.ops.stochastic_depth(x, _DROP_RATE, "row"),
        (x, residual),
    )


def _dropout_activation(shape: Shape, dtype: torch.dtype) -> Candidates:
    x, bias = (_random(part, dtype) for part in (shape, shape[-1:]))
    functional = torch.nn.functional
    return Candidates(
        lambda: lightning_kernels.dropout_activation(x, "gelu", _DROP_RATE, bias=bias),
        lambda: functional.dropout(functional.gelu(x + bias), _DROP_RATE),
        (x, bias),
    )


def _layer_that_drops(
    shape: Shape, dtype: torch.dtype, *, name: str, room: Any, arguments: tuple[Any, ...]
) -> Candidates:
    ours, peer = (getattr(where, name)(_DROP_RATE, *arguments) for where in (nn, room))
    return _on_x(shape, dtype, ours=ours, peer=peer)


def _transformer(shape: Shape, dtype: torch.dtype, *, name: str) -> Candidates:
    """Compare a layer of a transformer with its twin in training."""
    room: Any = torchvision.models.vision_transformer if name == "EncoderBlock" else torch.nn
    width, heads = shape[-1], 4
    arguments: tuple[Any, ...] = (width, heads, 2 * width, _DROP_RATE)
    if name == "EncoderBlock":
        arguments = (heads, width, 2 * width, _DROP_RATE, _DROP_RATE)
    ours, peer = (getattr(where, name)(*arguments).to(dtype) for where in (nn, room))
    x = _random(shape, dtype)
    more = (_random(shape, dtype),) if name == "TransformerDecoderLayer" else ()
    inputs = (x, *more, *ours.parameters(), *peer.parameters())
    return Candidates(lambda: ours(x, *more), lambda: peer(x, *more), inputs)


def _drop_connect(shape: Shape, dtype: torch.dtype) -> Candidates:
    layer = nn.DropConnectLinear(shape[-1], shape[-1], p=_DROP_RATE, dtype=dtype)
    x, functional = _random(shape, dtype), torch.nn.functional
    return Candidates(
        lambda: layer(x),
        lambda: functional.linear(x, functional.dropout(layer.weight, _DROP_RATE), layer.bias),
        (x, *layer.parameters()),
    )


def _weights(shape: Shape, dtype: torch.dtype) -> list[Tensor]:
    """Return as many parameters as the shape has rows, with small gradients."""
    weights = [torch.ones(shape[1:], dtype=dtype) for _ in range(shape[0])]
    for weight in weights:
        weight.grad = torch.randn_like(weight) * 1e-4
    return weights


def _clip(shape: Shape, dtype: torch.dtype, *, name: str) -> Candidates:
    """Clip as many gradients as the shape has rows, of which none is too large."""
    weights = _weights(shape, dtype)
    adaptive = name == "clip_grad_adaptive_"
    ours = getattr(lightning_kernels, name)
    peer: Any = (
        import_module("timm.utils.agc").adaptive_clip_grad
        if adaptive
        else getattr(torch.nn.utils, name)
    )
    limit = 0.1 if adaptive else 1e3
    return Candidates(lambda: ours(weights, limit), lambda: peer(weights, limit), ())


_CHANNELS: dict[str, tuple[Shape, ...]] = {
    "dropout1d": ((2, 8, 16), (8, 768, 197)),
    "dropout2d": ((2, 8, 4, 4), (8, 64, 56, 56)),
    "dropout3d": ((2, 8, 2, 4, 4), (2, 32, 8, 28, 28)),
    "feature_alpha_dropout": ((2, 8, 4, 4), (8, 64, 56, 56)),
}
_MAPS = ((2, 8, 4, 4), (8, 64, 56, 56))
_LAYERS_THAT_DROP: dict[str, tuple[Any, tuple[Any, ...], tuple[Shape, ...]]] = {
    "Dropout1d": (torch.nn, (), ((2, 8, 16), (8, 768, 197))),
    "Dropout2d": (torch.nn, (), _MAPS),
    "Dropout3d": (torch.nn, (), ((2, 8, 2, 4, 4), (2, 32, 8, 28, 28))),
    "AlphaDropout": (torch.nn, (), SHAPES),
    "FeatureAlphaDropout": (torch.nn, (), _MAPS),
    "StochasticDepth": (torchvision.ops, ("row",), _MAPS),
    "DropBlock2d": (torchvision.ops, (7,), ((1, 4, 14, 14), (32, 256, 14, 14))),
    "DropBlock3d": (torchvision.ops, (7,), ((1, 1, 8, 8, 8), (8, 64, 16, 16, 16))),
}


def _clip_in_step(shape: Shape, dtype: torch.dtype) -> Candidates:
    """Find the number to divide by, and clip: torch has no function for the former."""
    clip = _clip(shape, dtype, name="clip_grad_norm_")
    weights = _weights(shape, dtype)
    return Candidates(lambda: lightning_kernels.clip_grad_scale(weights, 1e3), clip.peer, ())


def _clip_by_known_norm(shape: Shape, dtype: torch.dtype) -> Candidates:
    weights = _weights(shape, dtype)
    norm = torch.tensor(1.0)
    return Candidates(
        lambda: lightning_kernels.clip_grads_with_norm_(weights, 1e3, norm),
        lambda: torch.nn.utils.clip_grads_with_norm_(weights, 1e3, norm),
        (),
    )


_CLIPPED_SHAPES = ((3, 4, 8), (100, 64, 256))
_CLIPS = {
    "clip_grad_norm_": "torch.nn.utils.clip_grad_norm_",
    "clip_grad_value_": "torch.nn.utils.clip_grad_value_",
    "clip_grad_adaptive_": "timm.utils.agc.adaptive_clip_grad",
}
_BATCH_NORMS: dict[str, tuple[Shape, ...]] = {
    "BatchNorm1d": ((16, 8), (256, 1024)),
    "BatchNorm2d": ((2, 8, 4, 4), (8, 64, 56, 56)),
    "BatchNorm3d": ((2, 8, 2, 4, 4), (2, 32, 8, 28, 28)),
    "SyncBatchNorm": ((2, 8, 4, 4), (8, 64, 56, 56)),  # in one process
}
_INSTANCE_NORMS: dict[str, tuple[Shape, ...]] = {
    "InstanceNorm1d": ((2, 8, 16), (8, 768, 197)),
    "InstanceNorm2d": ((2, 8, 4, 4), (8, 64, 56, 56)),
    "InstanceNorm3d": ((2, 8, 2, 4, 4), (2, 32, 8, 28, 28)),
}

OPS: dict[str, Op] = {
    "add_dropout_layer_norm": Op("torch.nn.functional.layer_norm", _add_norm),
    "add_dropout_rms_norm": Op(
        "torch.nn.functional.rms_norm", functools.partial(_add_norm, norm="rms_norm")
    ),
    "nn.AddDropoutLayerNorm": Op(
        "torch.nn.functional.layer_norm", functools.partial(_add_norm, layer=True)
    ),
    "group_norm": Op("torch.nn.functional.group_norm", _group_norm, _MAPS),
    "nn.GroupNorm": Op("torch.nn.GroupNorm", _group_norm_layer, _MAPS),
    "instance_norm": Op("torch.nn.functional.instance_norm", _instance_norm, _MAPS),
    **{
        f"nn.{name}": Op(
            f"torch.nn.{name}", functools.partial(_instance_norm_layer, name=name), shapes
        )
        for name, shapes in _INSTANCE_NORMS.items()
    },
    "batch_norm": Op(
        "torch.nn.functional.batch_norm", _batch_norm, ((2, 8, 4, 4), (8, 64, 56, 56))
    ),
    **{
        f"nn.{name}": Op(
            f"torch.nn.{name}", functools.partial(_batch_norm_layer, name=name), shapes
        )
        for name, shapes in _BATCH_NORMS.items()
    },
    "layer_norm": Op("torch.nn.functional.layer_norm", _layer_norm),
    "nn.LayerNorm": Op("torch.nn.LayerNorm", _layer_norm_layer),
    "nn.LayerNorm2d": Op(
        "torchvision's LayerNorm2d", _layer_norm2d, ((2, 8, 4, 4), (8, 96, 56, 56))
    ),
    "rms_norm": Op("torch.nn.functional.rms_norm", _rms_norm),
    "nn.RMSNorm": Op("torch.nn.RMSNorm", _rms_norm_layer),
    **{
        name: Op(
            f"torchvision.ops.{name}",
            functools.partial(
                _on_x,
                ours=functools.partial(
                    getattr(lightning_kernels, name), p=_DROP_RATE, block_size=7
                ),
                peer=functools.partial(getattr(torchvision.ops, name), p=_DROP_RATE, block_size=7),
            ),
            shapes,
        )
        for name, shapes in (
            ("drop_block2d", ((1, 4, 14, 14), (32, 256, 14, 14), (32, 512, 28, 28))),
            ("drop_block3d", ((1, 1, 8, 8, 8), (8, 64, 16, 16, 16))),
        )
    },
    "dropout": Op(
        "torch.nn.functional.dropout",
        functools.partial(
            _on_x,
            ours=functools.partial(lightning_kernels.dropout, p=_DROP_RATE),
            peer=functools.partial(torch.nn.functional.dropout, p=_DROP_RATE),
        ),
    ),
    **{
        name: Op(
            f"torch.nn.functional.{name}",
            functools.partial(_dropout_of_channels, name=name),
            shapes,
        )
        for name, shapes in _CHANNELS.items()
    },
    "alpha_dropout": Op(
        "torch.nn.functional.alpha_dropout",
        functools.partial(_dropout_of_channels, name="alpha_dropout"),
    ),
    **{
        f"nn.{name}": Op(
            f"{room.__name__}.{name}",
            functools.partial(_layer_that_drops, name=name, room=room, arguments=arguments),
            shapes,
        )
        for name, (room, arguments, shapes) in _LAYERS_THAT_DROP.items()
    },
    **{
        f"nn.{name}": Op(
            f"{room}.{name}",
            functools.partial(_transformer, name=name),
            ((2, 4, 32), (8, 197, 256)),
        )
        for name, room in (
            ("TransformerEncoderLayer", "torch.nn"),
            ("TransformerDecoderLayer", "torch.nn"),
            ("EncoderBlock", "torchvision.models.vision_transformer"),
        )
    },
    "nn.DropConnectLinear": Op("torch.nn.functional.linear", _drop_connect, ((2, 16), (256, 1024))),
    **{
        name: Op(peer, functools.partial(_clip, name=name), _CLIPPED_SHAPES, ("forward",))
        for name, peer in _CLIPS.items()
    },
    "clip_grad_scale": Op(
        "torch.nn.utils.clip_grad_norm_", _clip_in_step, _CLIPPED_SHAPES, ("forward",)
    ),
    "clip_grads_with_norm_": Op(
        "torch.nn.utils.clip_grads_with_norm_", _clip_by_known_norm, _CLIPPED_SHAPES, ("forward",)
    ),
    "stochastic_depth": Op("torchvision.ops.stochastic_depth", _stochastic_depth),
    "dropout_activation": Op("torch.nn.functional.dropout", _dropout_activation),
    "nn.Dropout": Op(
        "torch.nn.Dropout",
        functools.partial(_on_x, ours=nn.Dropout(_DROP_RATE), peer=torch.nn.Dropout(_DROP_RATE)),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``cpu``."""
    parser.add_argument(
        "--ops", nargs="+", choices=list(OPS), default=list(OPS), help="(default: all)"
    )
    add_out(parser, "cpu.json")
    parser.add_argument("--resume", action="store_true", help="keep what cpu.json has, go on")


def main(arguments: argparse.Namespace) -> int:
    """Measure every op; return 1 if one of them raised, whatever the ratios."""
    from benchmarks import report

    if lightning_kernels.route(torch.empty(1)) != "aten":
        print("cpu measures the route without kernels: unset TRITON_INTERPRET", file=sys.stderr)
        return 2
    results = Results.create(arguments.out / "cpu.json", arguments.resume)
    console = Console()
    measure(results, list(cases(arguments.ops)), console)
    _print_verdict(results.rows, console)
    report.write(results, arguments.out)
    return 1 if results.find(status="failed") else 0


def cases(ops: list[str]) -> Iterator[Case]:
    """Yield what to measure."""
    for name in ops:
        op = OPS[name]
        for shape in op.shapes:
            for dtype in DTYPES:
                for direction in op.directions:
                    yield Case(name, shape, dtype, direction)


def measure(results: Results, todo: list[Case], console: Console) -> None:
    """Add a row for each case that has none yet."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("cpu", total=len(todo))
        for case in todo:
            progress.update(task, description=f"{case.op} {case.key['shape']} {case.dtype}")
            if not results.find(**case.key):
                results.add({**case.key, **_measure(case)})
            progress.advance(task)


def _measure(case: Case) -> Row:
    """Return the figures of one case, or why there are none."""
    row: Row = {"threads": torch.get_num_threads(), "route": "aten"}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pair = OPS[case.op].make(case.shape, DTYPES[case.dtype])
            ours, peer = (_directed(call, pair.inputs, case) for call in (pair.ours, pair.peer))
            comparison = compare(ours, peer)
    except Exception as error:
        return {**row, "status": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
    return {
        **row,
        "status": "ok",
        "reason": None,
        "ratio": round(comparison.ratio, 4),
        "spread": round(comparison.spread, 4),
        "microseconds": round(comparison.seconds * 1e6, 3),
        "peer_microseconds": round(comparison.peer_seconds * 1e6, 3),
        "above_goal": comparison.ratio > GOAL,
    }


def _directed(
    call: Callable[[], Any], inputs: tuple[Tensor, ...], case: Case
) -> Callable[[], object]:
    """Return ``call``, followed by its backward pass if the case has both."""
    if case.direction == "forward":
        return call
    y: Tensor = call()
    grad = torch.randn_like(y)
    reached = [
        x
        for x, gradient in zip(
            inputs, torch.autograd.grad(y, inputs, grad, allow_unused=True), strict=True
        )
        if gradient is not None
    ]
    return lambda: torch.autograd.grad(call(), reached, grad)


def _print_verdict(rows: list[Row], console: Console) -> None:
    """Say which rows are above the goal, and which failed."""
    measured = [row for row in rows if row["status"] == "ok"]
    above = [row for row in measured if row["above_goal"]]
    for row in rows:
        what = "{op} against {peer}, {shape} {dtype} {direction}".format(**row)
        if row["status"] != "ok":
            console.print(f"{what}: {row['reason']}", markup=False, soft_wrap=True)
        elif row["above_goal"]:
            figures = "{ratio:.3f} ± {spread:.3f}, {microseconds} us".format(**row)
            console.print(f"{what}: {figures}", markup=False, soft_wrap=True)
    console.print(
        f"{len(measured)} pairs, {len(measured) - len(above)} of them within the goal of {GOAL}"
        f" times the peer's time, {len(above)} above it",
        soft_wrap=True,
    )
