"""timm's transformers: additions are one call with the norms of the next blocks, too."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

import lightning_kernels
from lightning_practices.nn import ScheduledRate
from lightning_practices.surgery import Folded, Report, fuse, unfuse
from tests import processes
from tests.nn.transformer_layers import count_folds
from tests.surgery.models import assert_equal, everything, near, step
from tests.surgery.timm_models import (
    close,
    each_model,
    images,
    kernel,
    rms_vit,
    sums,
    vit,
)

pytestmark = [pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")]


@each_model
@pytest.mark.parametrize("training", [True, False])
def test_blocks_in_a_row_in_float64(
    build: Callable[[], Any], size: int, folds: int, training: bool, fused_sum_calls: list[str]
) -> None:
    """The norm that begins a block is part of the call that ends the block before it."""
    plain, x = build().double().train(training), images(size).double()
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert len(sums(report)) == folds
    before = everything(plain, x)
    close(everything(fused, x), before)
    assert len(fused_sum_calls) == folds
    assert sums(unfuse(fused)) == sums(report)
    assert_equal(everything(fused, x), before)
    assert len(fused_sum_calls) == folds
    assert [type(module) for module in fused.modules()] == [*map(type, plain.modules())]


@kernel
@each_model
def test_models_are_as_right_as_before(
    build: Callable[[], Any], size: int, folds: int, sum_calls: list[str], device: str
) -> None:
    plain, x = build().to(device), images(size).to(device)
    fused = copy.deepcopy(plain)
    fuse(fused)
    near(fused, plain, x)
    assert len(sum_calls) == folds
    assert set(sum_calls) == {f"add_dropout_{'rms' if build is rms_vit else 'layer'}_norm"}


def test_report_names_the_norms() -> None:
    model = vit(2)
    report = fuse(model)
    norm, block = "timm.layers.LayerNorm", "timm.models.vision_transformer.Block"
    chain = "add + LayerNorm"
    assert report.folded == [
        Folded(("blocks.0.norm2",), norm, block, chain),
        Folded(("blocks.1.norm1",), norm, "torch.nn.Sequential", chain),
        Folded(("blocks.1.norm2",), norm, block, chain),
    ]
    assert not any(replaced.names[0] in ("blocks", "blocks.0") for replaced in report.replaced)
    assert not report.skipped
    assert fuse(model) == Report()


def hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda *_: None)


def compiled(module: nn.Module) -> None:
    module.compile(backend="eager")


def own_forward(module: Any) -> None:
    module.forward = type(module).forward.__get__(module)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch.compile
@pytest.mark.parametrize(
    ("change", "place", "folds"),
    [
        (hook, "blocks.1", 3),
        (lambda m: m.register_forward_pre_hook(lambda *_: None), "blocks.1", 3),
        (lambda m: m.register_full_backward_hook(lambda *_: None), "blocks.1", 3),
        (lambda m: m.register_full_backward_pre_hook(lambda *_: None), "blocks.1", 3),
        (own_forward, "blocks.1", 2),
        (compiled, "blocks.1", 3),
        (hook, "blocks.1.norm1", 4),
        (hook, "blocks.1.norm2", 4),
        (own_forward, "blocks.1.norm1", 4),
        (hook, "blocks.1.attn", 5),
        (hook, "blocks", 5),
    ],
)
def test_a_call_that_does_more_is_made(
    change: Callable[[Any], Any], place: str, folds: int, fused_sum_calls: list[str]
) -> None:
    plain, x = vit().double(), images().double()
    fused = copy.deepcopy(plain)
    fuse(fused)
    change(fused.get_submodule(place))
    seen: list[nn.Module] = []
    if change is hook:
        fused.get_submodule(place).register_forward_hook(lambda module, *_: seen.append(module))
    close(everything(fused, x), everything(plain, x))
    assert len(fused_sum_calls) == folds
    assert len(seen) == (change is hook)


def test_global_hooks_run(fused_sum_calls: list[str], global_hook: Callable[[], None]) -> None:
    plain, x = vit().double(), images().double()
    fused = copy.deepcopy(plain)
    fuse(fused)
    global_hook()
    close(everything(fused, x), everything(plain, x))
    assert not fused_sum_calls


@pytest.mark.parametrize("scheduled", [True, False])
def test_drops_draw_the_same_numbers(
    scheduled: bool, fused_sum_calls: list[str], global_hook: Callable[[], None]
) -> None:
    model = vit(drop_path_rate=0.6, proj_drop_rate=0.3, pos_drop_rate=0.2, init_values=0.5)
    model, x = model.double(), images().double()
    fuse(model)
    for module in model.modules():
        if scheduled and isinstance(module, ScheduledRate):
            module.schedule_rate()
    folded = everything(model, x)
    assert len(fused_sum_calls) == 5
    global_hook()
    close(everything(model, x), folded)
    assert len(fused_sum_calls) == 5


@kernel
def test_drops_of_kernels_draw_the_same_numbers(
    device: str, sum_calls: list[str], global_hook: Callable[[], None]
) -> None:
    model = vit(drop_path_rate=0.6, proj_drop_rate=0.3, init_values=0.5).to(device)
    x = images().to(device)
    fuse(model)
    folded = everything(model, x)
    assert len(sum_calls) == 5
    global_hook()
    for one, other in zip(everything(model, x), folded, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
    assert len(sum_calls) == 5


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool, fused_sum_calls: list[str]) -> None:
    """Blocks run one by one there, so only the norms inside of blocks are folded."""
    plain, x = vit().double(), images().double()
    fused = copy.deepcopy(plain)
    fuse(fused)
    fused.set_grad_checkpointing()
    close(everything(fused, x), everything(plain, x))
    assert len(fused_sum_calls) == 6  # each in the forward, and again in the backward
    del fused_sum_calls[:]
    fused.set_grad_checkpointing(False)

    def run(x: Tensor) -> Any:
        return checkpoint(fused, x, use_reentrant=reentrant)

    x.requires_grad_()
    weights = list(fused.parameters())
    for weight in weights:
        weight.grad = None
    run(x).square().sum().backward()
    grads = [weight.grad for weight in weights if weight.grad is not None]
    close(grads, everything(plain, x.detach())[3:])
    assert len(fused_sum_calls) == 10


def test_other_ways_to_run_the_blocks(fused_sum_calls: list[str]) -> None:
    plain, x = vit().double().eval(), images().double()
    fused = copy.deepcopy(plain)
    fuse(fused)
    assert plain.state_dict().keys() == fused.state_dict().keys()
    assert repr(fused.blocks[0]) == repr(plain.blocks[0])
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    for run in (
        lambda model: model.forward_intermediates(x, indices=[0, 2], norm=True)[1],
        lambda model: [model.forward_features(x, attn_mask=mask)],
        lambda model: [model.blocks[1](x=model.patch_embed(x), is_causal=True)],
    ):
        torch.testing.assert_close(run(fused), run(plain), rtol=1e-9, atol=1e-9)
    assert len(fused_sum_calls) == 7


def test_scripting_says_what_to_do() -> None:
    model = vit()
    fuse(model)
    with pytest.raises(RuntimeError, match="unfuse"):
        torch.jit.script(model)
    unfuse(model)
    torch.jit.script(model)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch.compile
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@each_model
def test_compiled_in_one_graph(
    build: Callable[[], Any], size: int, folds: int, backend: str, fused_sum_calls: list[str]
) -> None:
    plain, x = build().double(), images(size).double()
    fused = copy.deepcopy(plain)
    fuse(fused)
    torch.compiler.reset()
    close(
        everything(torch.compile(fused, backend=backend, fullgraph=True), x), everything(plain, x)
    )
    assert len(fused_sum_calls) == folds


@kernel
@pytest.mark.parametrize("init_values", [None, 0.5])
def test_autocast_keeps_the_precision_of_the_stream(
    init_values: float | None, sum_calls: list[str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, x = vit(init_values=init_values).to(device), images().to(device)
    fused = copy.deepcopy(plain)
    fuse(fused)
    exact = everything(copy.deepcopy(plain).double(), x.double())
    streams: set[torch.dtype] = set()
    function = lightning_kernels.add_dropout_layer_norm

    def noted(branch: Tensor, stream: Tensor, *args: Any, **options: Any) -> Any:
        y, z = function(branch, stream, *args, **options)
        streams.update((stream.dtype, z.dtype))
        assert (branch.dtype is torch.bfloat16) == (init_values is None) == (y.dtype is not z.dtype)
        return y, z

    monkeypatch.setattr(lightning_kernels, "add_dropout_layer_norm", noted)
    with torch.autocast(device, torch.bfloat16):
        ours, theirs = everything(fused, x), everything(plain, x)
    assert len(sum_calls) == 5
    assert streams == {torch.float32}
    total = [
        sum(
            (a.double() - b).square().sum() / b.square().sum()
            for a, b in zip(each, exact, strict=True)
        )
        for each in (ours, theirs)
    ]
    assert total[0] <= 1.5**2 * total[1]


def sharded_step(shards_blocks: bool, shards_norms: bool) -> tuple[list[Tensor], int]:
    """Return output and whole gradients of a fused, sharded model, and the number of its folds."""
    torch.manual_seed(0)
    model, x = vit(), images()
    fuse(model)
    mesh = init_device_mesh("cpu", (2,))
    for block in model.blocks:
        if shards_norms:
            fully_shard(block.norm1, mesh=mesh)
        if shards_blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    with pytest.MonkeyPatch.context() as patch:
        calls = count_folds(patch)
        patch.setattr(lightning_kernels, "route", lambda x: "triton")
        y = model(x)
    y.square().sum().backward()
    grads = [p.grad for p in model.parameters()]
    return [y.detach(), *(g.full_tensor() for g in grads if isinstance(g, DTensor))], len(calls)


@pytest.mark.parametrize(
    ("shards_blocks", "shards_norms", "folds"),
    [(False, False, 5), (True, False, 3), (False, True, 3), (True, True, 3)],
)
def test_under_fsdp2(shards_blocks: bool, shards_norms: bool, folds: int) -> None:
    """A block in a shard of its own has its parameters only while it is called."""
    torch.manual_seed(0)
    model, x = vit(), images()
    expected = step(model, x)
    for results, calls in processes.run(sharded_step, [(shards_blocks, shards_norms)] * 2):
        assert calls == folds
        for mine, right in zip(results, expected, strict=True):
            assert (mine - right).norm() <= 1e-4 * right.norm()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of timm's checks of shapes
def test_traced() -> None:
    model, x = vit().eval(), images()
    fuse(model)
    y = model(x)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), y, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), y)
