"""How ``torch.compile`` computes norms: by kernels, or by torch's functions for Inductor."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

import lightning_kernels
from lightning_kernels import CompiledNorms, set_compiled_norms

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
    set_compiled_norms("kernels")
    torch._dynamo.reset()


@pytest.mark.kernel
@pytest.mark.parametrize("name", NORMS)
def test_a_change_compiles_again(name: str, device: str) -> None:
    graphs: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(" ".join(str(node.target) for node in graph.graph.nodes))
        return graph

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=keep)
    compiled = torch.compile(NORMS[name], backend=backend, fullgraph=True)
    x = torch.randn(4, SIZE, device=device)
    expected = NORMS[name](x)
    choices: list[CompiledNorms] = ["kernels", "inductor", "inductor", "kernels"]
    for norms in choices:
        set_compiled_norms(norms)
        torch.testing.assert_close(compiled(x), expected)
    kernels = ["lightning_kernels" in graph for graph in graphs]
    assert kernels in ([True, False], [True, False, True])  # torch may reuse the first


def test_eager_calls_do_not_change(device: str) -> None:
    x = torch.randn(4, SIZE, device=device)
    before = {name: norm(x) for name, norm in NORMS.items()}
    set_compiled_norms("inductor")
    for name, norm in NORMS.items():
        assert torch.equal(norm(x), before[name])


def test_an_unknown_choice() -> None:
    with pytest.raises(ValueError, match=r"'kernels' or 'inductor'.*'cudnn'"):
        set_compiled_norms("cudnn")  # type: ignore[arg-type]
