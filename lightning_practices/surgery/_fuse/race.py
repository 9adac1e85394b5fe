"""Time both ways to compute a call, in turns in one run."""

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_practices.surgery._fuse.tensors import device_of, tensors_in
from lightning_practices.surgery._fuse.uses import Function, Use
from lightning_practices.timing import Budget, Clock, Times, interleave, spread_of

_ROUNDS = Budget(0.1, least=5, most=100)
STEPS = Budget(1.0, least=3, most=20)  # rounds of a whole step
# So long that the resolution of the clock hardly matters, and so short that a busy machine takes
# the processor away in few laps alone, which the median leaves out.
_LAP_SECONDS = 3e-4
_MOST_CALLS = 200  # in a lap
_CACHES = 4  # the inputs of a lap have this many times the size of the GPU's last cache
_MOST_SETS, _MOST_BYTES = 16, 1 << 28  # of these inputs


def time_use(use: Use, clock: Clock) -> Times:
    """Time a call and its backward pass, by wall time over calls in a row.

    So the host's time counts where the device waits for it. Each call has its own inputs, and
    together they don't fit in a GPU's cache.
    """
    plain, fused = use.target.ways()
    first = use.arguments()
    device = device_of(plain, first)
    sets = [first, *(use.arguments() for _ in range(_number_of_sets(first, device) - 1))]
    with use.context():
        calls = {
            name: [functools.partial(call_and_differentiate, way, way, args) for args in sets]
            for name, way in (("torch", plain), ("ours", fused))
        }
        return race(calls, device, clock)


def race(
    calls: Mapping[str, Sequence[Callable[[], object]]], device: torch.device, clock: Clock,
    budget: Budget = _ROUNDS, prepare: Callable[[str], None] = lambda name: None,
) -> Times:  # fmt: skip
    """Time the calls named ``"torch"`` and ``"ours"``, which run one after another in a lap.

    Args:
        calls: The calls of a lap, by name. Both have the same number.
        device: The device that computes them.
        clock: Function that returns seconds.
        budget: Number of rounds.
        prepare: Function of the name that runs before each lap, and is not timed.
    """
    count = len(calls["torch"])

    def lap(name: str) -> float:
        prepare(name)
        series = calls[name]
        _wait(device)
        start = clock()
        for place in range(count):
            series[place % len(series)]()
        _wait(device)
        return (clock() - start) / count

    seconds = min([lap(name) for name in calls])  # the first calls compile and allocate
    if seconds < _LAP_SECONDS:
        seconds = min(lap(name) for name in calls)
    count = max(count, min(_MOST_CALLS, math.ceil(_LAP_SECONDS / max(seconds, 1e-9))))
    laps = {name: functools.partial(lap, name) for name in calls}
    samples, errors = interleave(laps, budget, clock)
    for error in errors.values():
        raise error
    ratios = [a / b for a, b in zip(samples["ours"], samples["torch"], strict=True)]
    torchs, ours = (statistics.median(samples[name]) for name in ("torch", "ours"))
    return Times(torchs, ours, spread_of(ratios) / math.sqrt(len(ratios)))


def call_and_differentiate(way: Function, layer: nn.Module, arguments: tuple[Any, Any]) -> object:
    """Compute the result of a call, and the gradients that its inputs and parameters require."""
    args, kwargs = arguments
    leaves = [x for x in tensors_in(arguments) if x.requires_grad]
    if leaves:  # layers in place can't change a leaf
        args = tuple(_as_result(x) for x in args)
    output = way(*args, **kwargs)
    if not torch.is_grad_enabled():
        return output
    outputs = [x for x in tensors_in(output) if x.requires_grad]
    leaves += [p for p in layer.parameters() if p.requires_grad]
    if not (outputs and leaves):
        return output
    ones = [_one(x.shape, x.dtype, x.device) for x in outputs]
    return torch.autograd.grad(outputs, leaves, ones, allow_unused=True)


def _as_result(x: Any) -> Any:
    return x.view_as(x) if isinstance(x, Tensor) and x.requires_grad else x


def forget_ones() -> None:
    """Free the tensors that :func:`call_and_differentiate` keeps."""
    _one.cache_clear()


@functools.lru_cache(maxsize=4)
def _one(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones(shape, dtype=dtype, device=device)


def _number_of_sets(arguments: Any, device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    size = max(1, sum(x.numel() * x.element_size() for x in tensors_in(arguments)))
    cache: int = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, min(_MOST_SETS, math.ceil(_CACHES * cache / size), _MOST_BYTES // size))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
