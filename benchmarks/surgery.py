"""``surgery``: count folds in known networks, and time what fusing costs without kernels."""

import argparse
import copy
import functools
import statistics
import time
import timeit
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision import models

from benchmarks import screen
from benchmarks.networks import Network, networks
from benchmarks.options import whole
from benchmarks.timers import CpuTimer
from lightning_practices.nn import BatchNorm2d, norm_activation
from lightning_practices.surgery import fuse
from lightning_practices.timing import Budget, Clock, interleave

HEADS = ("batch norms", "replaced", "folded", "with a sum", "skipped", "not served")
SHOWN = 40  # classes of layers that are left
GUARD_CALLS = 200
TIMER = time.thread_time  # CPU time of this thread, so that other work of the machine has no effect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m benchmarks surgery``."""
    parser.add_argument("--repeats", type=whole, default=50, help="timings (default: %(default)s)")
    parser.add_argument(
        "--size", type=whole, default=224, help="of an image (default: %(default)s)"
    )


def main(arguments: argparse.Namespace) -> int:
    """Print tables of the folds in many networks, and one of the costs of a fused ResNet-18."""
    torch.set_num_threads(1)
    console = screen.console()
    for table in coverage(networks()):
        console.print(table)
    costs = Table("fused ResNet-18", "of the plain one")
    plain: nn.Module = models.resnet18().eval()
    fused: Any = copy.deepcopy(plain)
    fuse(fused)
    costs.add_row(
        "guard of a block's call",
        f"{guard_microseconds(fused.layer1[0], arguments.repeats):.2f} us",
    )
    ratio = paired(copy.deepcopy, plain, fused, arguments.repeats)
    costs.add_row("deepcopy", f"{ratio:.3f}")
    image = torch.randn(1, 3, arguments.size, arguments.size)
    with torch.inference_mode():
        ratio = paired(lambda net: net(image), plain, fused, arguments.repeats)
    costs.add_row("evaluation of one image on the CPU", f"{ratio:.3f}")
    console.print(costs)
    return 0


def coverage(networks: Iterable[Network]) -> Iterator[Table]:
    """Yield tables of what :func:`fuse` serves in each family of networks, and of what is left.

    Args:
        networks: The family, the name and the module of each network.
    """
    served = Table("family", "networks", *HEADS, show_footer=True)
    families: dict[str, list[int]] = {}
    left: Counter[tuple[str, str]] = Counter()
    for family, _, net in track(networks, "fusing", transient=True):
        norms = sum(isinstance(module, _BatchNorm) for module in net.modules())
        report = fuse(net)
        sums = sum(" + add + " in folded.chain for folded in report.folded)
        counts = [
            1, norms, len(report.replaced), len(report.folded), sums, len(report.skipped),
            len(report.not_served),
        ]  # fmt: skip
        known = families.get(family, [0] * len(counts))
        families[family] = [a + b for a, b in zip(known, counts, strict=True)]
        left.update((one.cls, one.reason) for one in (*report.skipped, *report.not_served))
    for family, counts in families.items():
        served.add_row(family, *map(str, counts))
    total = [sum(column) for column in zip(*families.values(), strict=True)]
    for column, text in zip(served.columns, ["all", *map(str, total)], strict=True):
        column.footer = text
    remaining = Table("layers", "class", "why it is left")
    for (cls, reason), count in left.most_common(SHOWN):
        remaining.add_row(str(count), cls, reason)
    yield from (served, remaining)


def paired(
    act: Callable[[Any], Any], plain: nn.Module, fused: nn.Module, repeats: int,
    clock: Clock = TIMER,
) -> float:  # fmt: skip
    """Return the time of ``act`` for ``fused`` over that for ``plain``: the median of rounds."""
    timer = CpuTimer(clock)
    laps = {
        name: timer.prepare([functools.partial(act, net)]).lap
        for name, net in (("plain", plain), ("fused", fused))
    }
    samples, errors = interleave(laps, Budget(0.0, least=repeats, most=repeats), clock)
    for error in errors.values():
        raise error
    pairs = zip(samples["fused"], samples["plain"], strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def guard_microseconds(block: Any, repeats: int) -> float:
    """Return the microseconds that the checks in a call of a fused ``BasicBlock`` take.

    The block's norms are replaced by functions that do nothing, and the time of their calls is
    subtracted. Where the kernels don't run, :func:`lightning_kernels.route` returns sooner than on
    a GPU.
    """
    x = torch.zeros(1, 64, 1, 1)

    def nothing(*_: Any) -> Tensor:
        return x

    def guards() -> None:
        block.folds(x)
        norm_activation(x, block.bn1, block.relu)
        norm_activation(x, block.bn2, block.relu, x, inplace=True)

    def layers() -> None:
        block.bn1.normalise(x, None, "relu", None)
        block.bn2.normalise(x, x, "relu", None)
        block.relu, block.relu  # noqa: B018  # the original forward reads these attributes too

    def best(function: Callable[[], object]) -> float:
        times = timeit.repeat(function, timer=TIMER, number=GUARD_CALLS, repeat=repeats)
        return min(times) / GUARD_CALLS * 1e6

    block = copy.deepcopy(block)
    block.bn1.__class__ = block.bn2.__class__ = type(
        "Nothing", (BatchNorm2d,), {"normalise": nothing}
    )
    return best(guards) - best(layers)
