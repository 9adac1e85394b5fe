"""``surgery``: count folds in known networks, and time what fusing costs without kernels."""

import argparse
import copy
import functools
import statistics
import time
import timeit
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision import models

from benchmarks import screen
from benchmarks.options import whole
from benchmarks.timers import CpuTimer
from lightning_practices._timing import Budget, Clock, interleave
from lightning_practices.nn import BatchNorm2d, norm_activation
from lightning_practices.surgery import fuse

NETWORKS = (
    "resnet18", "resnet50", "densenet121", "vgg11_bn", "googlenet", "inception_v3",
    "efficientnet_b0", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large",
    "mnasnet1_0", "shufflenet_v2_x1_0", "convnext_tiny", "vit_b_16", "swin_t",
)  # fmt: skip
TIMM_NETWORKS = (
    "resnet18", "resnet50", "efficientnet_b0", "regnetx_002", "regnety_002", "densenet121",
    "mobilenetv2_100", "mobilenetv3_large_100", "convnext_tiny", "vit_base_patch16_224",
    "eva02_base_patch14_448", "beit_base_patch16_224", "swin_tiny_patch4_window7_224",
)  # fmt: skip
# Model types of transformers, each with its default configuration.
TRANSFORMERS_NETWORKS = (
    "bert", "roberta", "deberta-v2", "modernbert", "gpt2", "t5", "bart", "llama", "mistral",
    "mixtral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "olmo2", "cohere", "gpt_oss", "mamba",
    "vit", "dinov2", "swin", "convnext", "segformer", "detr", "clip", "whisper", "wav2vec2",
)  # fmt: skip
GUARD_CALLS = 200
TIMER = time.thread_time  # CPU time of this thread, so that other work of the machine has no effect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m benchmarks surgery``."""
    parser.add_argument("--repeats", type=whole, default=50, help="timings (default: %(default)s)")
    parser.add_argument(
        "--size", type=whole, default=224, help="of an image (default: %(default)s)"
    )


def main(arguments: argparse.Namespace) -> int:
    """Print a table of the folds in many networks, and one of the costs of a fused ResNet-18."""
    torch.set_num_threads(1)
    console = screen.console()
    console.print(coverage(networks()))
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


def coverage(named: Iterable[tuple[str, nn.Module]]) -> Table:
    """Return a table of what :func:`fuse` serves in each network and in all of them."""
    heads = ("batch norms", "replaced", "folded", "skipped", "not served")
    table = Table("network", *heads, show_footer=True)
    total = [0 for _ in heads]
    for name, net in track(named, "fusing", transient=True):
        norms = sum(isinstance(module, _BatchNorm) for module in net.modules())
        report = fuse(net)
        served = [norms, len(report.replaced), len(report.folded)]
        counts = [*served, len(report.skipped), len(report.not_served)]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        table.add_row(name, *map(str, counts))
    for column, text in zip(table.columns, ["all", *map(str, total)], strict=True):
        column.footer = text
    return table


def networks() -> list[tuple[str, nn.Module]]:
    """Return networks with their names. Their weights take no memory."""
    found = []
    with torch.device("meta"):
        for name in NETWORKS:
            options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            found.append((name, models.get_model(name, **options)))
        if find_spec("timm"):
            import timm

            found += [(f"timm {name}", timm.create_model(name)) for name in TIMM_NETWORKS]
        if find_spec("transformers"):
            found += [
                (f"transformers {name}", _transformer(name)) for name in TRANSFORMERS_NETWORKS
            ]
    return found


def _transformer(kind: str) -> nn.Module:
    import transformers

    # DETR's default backbone would be downloaded.
    options = {"backbone_config": transformers.ResNetConfig()} if kind == "detr" else {}
    config = transformers.AutoConfig.for_model(kind, **options)
    network: nn.Module = transformers.AutoModel.from_config(config)
    return network


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
