"""What compiled norms become: kernels, or torch's functions for Inductor to fuse."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

import lightning_kernels
from lightning_kernels import leave_norms_to_inductor

SIZE = 8
NORMS: dict[str, Callable[[Tensor], Any]] = {
    "layer_norm": lambda x: lightning_kernels.layer_norm(x, (SIZE,)),
    "rms_norm": lambda x: lightning_kernels.rms_norm(x, (SIZE,)),
    "batch_norm": lambda x: lightning_kernels.batch_norm(x, None, None, training=True),
    "group_norm": lambda x: lightning_kernels.group_norm(x, 2),
    "instance_norm": lambda x: lightning_kernels.instance_norm(x[None]),
    "add_dropout_layer_norm": lambda x: lightning_kernels.add_dropout_layer_norm(x, x, (SIZE,))[0],
}


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    leave_norms_to_inductor(False)
    torch._dynamo.reset()


@pytest.mark.kernel
@pytest.mark.parametrize("name", NORMS)
def test_compiled_anew_as_chosen(name: str, device: str) -> None:
    graphs: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(" ".join(str(node.target) for node in graph.graph.nodes))
        return graph

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=keep)
    compiled = torch.compile(NORMS[name], backend=backend, fullgraph=True)
    x = torch.randn(4, SIZE, device=device)
    expected = NORMS[name](x)
    for leave in (False, True, True, False):
        leave_norms_to_inductor(leave)
        torch.testing.assert_close(compiled(x), expected)
    kernels = ["lightning_kernels" in graph for graph in graphs]
    assert kernels in ([True, False], [True, False, True])  # what was compiled is found again


def test_eager_calls_are_as_they_were(device: str) -> None:
    x = torch.randn(4, SIZE, device=device)
    before = {name: norm(x) for name, norm in NORMS.items()}
    leave_norms_to_inductor()
    for name, norm in NORMS.items():
        assert torch.equal(norm(x), before[name])
