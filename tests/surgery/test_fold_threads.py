"""Fusing changes the model alone, not Python or torch, in any thread; and copies are cheap."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import Conv2dNormActivation

from lightning_practices.surgery import fuse, unfuse
from tests.surgery.conftest import Calls

pytestmark = pytest.mark.plain

THREADS = 4


def model(seed: int) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(
        Conv2dNormActivation(3, 4), ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3).layer1[:0],
        nn.Conv2d(4, 64, 1), ResNet(BasicBlock, [1, 1, 1, 1]).layer1,
    ).double().eval()  # fmt: skip


def parts_of_the_process() -> list[object]:
    places = sys.modules["builtins"], nn.Module, nn.Sequential, nn.functional, BasicBlock, ResNet
    return [value for place in places for value in vars(place).values()]


def test_threads_fuse_copy_and_run_models_at_once(fused_calls: Calls) -> None:
    before = parts_of_the_process()
    models = [model(seed) for seed in range(THREADS)]
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    expected = [net(x) for net in models]
    start = Barrier(THREADS)
    plain = copy.deepcopy(models[0])

    def work(net: Any) -> tuple[list[Tensor], list[int], list[type]]:
        start.wait()
        outputs, counts = [], []
        for _ in range(5):
            counts.append(len(fuse(net).folded))
            twin = copy.deepcopy(net)
            kinds = [type(module) for module in twin.modules()]
            outputs += [net(x), twin(x), plain(x) - expected[0]]
            unfuse(net)
        return outputs, counts, kinds

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(work, models))
    for (outputs, counts, kinds), right in zip(results, expected, strict=True):
        assert counts == [3] * 5
        assert kinds == results[0][2]  # one class for all threads
        for place, y in enumerate(outputs):
            torch.testing.assert_close(y, torch.zeros_like(y) if place % 3 == 2 else right)
    after = parts_of_the_process()
    assert len(before) == len(after)
    assert all(old is new for old, new in zip(before, after, strict=True))


def calls_of_a_copy(net: nn.Module) -> int:
    """Return how many Python functions a deepcopy of ``net`` calls."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        copy.deepcopy(net)
    finally:
        sys.setprofile(None)
    return count


def test_copy_of_a_fused_network_runs_little_more_than_a_plain_one() -> None:
    net = resnet18()
    plain = calls_of_a_copy(net)
    fuse(net)
    assert calls_of_a_copy(net) < 1.05 * plain
