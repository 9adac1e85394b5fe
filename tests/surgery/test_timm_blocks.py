"""timm's transformer blocks, whose additions are one call with the norms after them."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules import module as hooks
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

import lightning_kernels
from lightning_practices.nn import ScheduledRate, blocks
from lightning_practices.surgery import Folded, Report, fuse, unfuse
from tests import processes
from tests.nn.transformer_layers import count_folds
from tests.surgery.models import assert_equal, everything, near, step

timm: Any = pytest.importorskip("timm")
pytestmark = [pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")]
kernel = pytest.mark.kernel
MODELS: Any = timm.models
VIT: Any = MODELS.vision_transformer
DIM = 8


def given(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def small(model: nn.Module) -> Any:
    """Return ``model`` with random parameters for which float32 is precise."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def maxvit(cls: Any) -> Any:
    cfg = MODELS.maxxvit.MaxxVitTransformerCfg(dim_head=4, window_size=4, init_values=0.5)
    return cls(DIM, cfg=cfg)


# A block of each class, the shape of its input without the batch, and its other arguments.
TOKENS, MAP = (16, DIM), (4, 4, DIM)
BLOCKS: dict[str, tuple[Callable[[], Any], tuple[int, ...], tuple[Any, ...]]] = {
    "vision_transformer.Block": (lambda: VIT.Block(DIM, 2, init_values=0.5), TOKENS, ()),
    "eva.EvaBlock": (
        lambda: MODELS.eva.EvaBlock(DIM, 2, init_values=0.5, num_prefix_tokens=0),
        TOKENS,
        (given(16, 8),),
    ),
    "deepseek_vit.DeepseekVitBlock": (
        lambda: MODELS.deepseek_vit.DeepseekVitBlock(DIM, 2, norm_layer=timm.layers.RmsNorm),
        TOKENS,
        (given(16, 8),),
    ),
    "beit.Block": (lambda: MODELS.beit.Block(DIM, 2, init_values=0.5), TOKENS, ()),
    "vision_transformer_relpos.RelPosBlock": (
        lambda: MODELS.vision_transformer_relpos.RelPosBlock(DIM, 2, init_values=0.5),
        TOKENS,
        (),
    ),
    "swin_transformer.SwinTransformerBlock": (
        lambda: MODELS.swin_transformer.SwinTransformerBlock(
            DIM, (4, 4), 2, window_size=2, shift_size=1
        ),
        MAP,
        (),
    ),
    "gcvit.GlobalContextVitBlock": (
        lambda: MODELS.gcvit.GlobalContextVitBlock(
            DIM, (4, 4), 2, window_size=4, layer_scale=0.5
        ),
        MAP,
        (given(2, 16, DIM),),
    ),
    "cait.LayerScaleBlock": (lambda: MODELS.cait.LayerScaleBlock(DIM, 2), TOKENS, ()),
    "convit.Block": (lambda: MODELS.convit.Block(DIM, 2, use_gpsa=False), TOKENS, ()),
    "nest.TransformerLayer": (
        lambda: MODELS.nest.TransformerLayer(DIM, 2), (2, *TOKENS), (),
    ),
    "volo.Outlooker": (lambda: MODELS.volo.Outlooker(DIM, 3, 1, num_heads=2), MAP, ()),
    "volo.Transformer": (lambda: MODELS.volo.Transformer(DIM, 2), MAP, ()),
    "pvt_v2.Block": (lambda: MODELS.pvt_v2.Block(DIM, 2, sr_ratio=2), TOKENS, ([4, 4],)),
    "twins.Block": (lambda: MODELS.twins.Block(DIM, 2, ws=2), TOKENS, ((4, 4),)),
    "efficientformer.MetaBlock1d": (
        lambda: MODELS.efficientformer.MetaBlock1d(DIM), (49, DIM), (),
    ),
    "maxxvit.PartitionAttentionCl": (
        lambda: maxvit(MODELS.maxxvit.PartitionAttentionCl), MAP, (),
    ),
    "maxxvit.ParallelPartitionAttention": (
        lambda: maxvit(MODELS.maxxvit.ParallelPartitionAttention), MAP, (),
    ),
    "vision_transformer_sam.Block": (
        lambda: MODELS.vision_transformer_sam.Block(DIM, 2, init_values=0.5, window_size=3),
        MAP,
        (),
    ),
    "mlp_mixer.MixerBlock": (lambda: MODELS.mlp_mixer.MixerBlock(DIM, 16), TOKENS, ()),
    "sequencer.Sequencer2dBlock": (
        lambda: MODELS.sequencer.Sequencer2dBlock(DIM, 4), MAP, (),
    ),
    "xcit.XCABlock": (lambda: MODELS.xcit.XCABlock(DIM, 2), TOKENS, (4, 4)),
    "gemma4_vit.Gemma4Block": (
        lambda: MODELS.gemma4_vit.Gemma4Block(DIM, 2, 8, 16),
        TOKENS,
        (given(1, 16, 8), given(1, 16, 8)),
    ),
}  # fmt: skip
each_block = pytest.mark.parametrize("name", BLOCKS)


class Given(nn.Module):
    """A block with its other arguments."""

    def __init__(self, block: nn.Module, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.block, self.arguments = block, arguments

    @override
    def forward(self, x: Tensor) -> Any:
        def like(a: Any) -> Any:
            return a.to(x) if isinstance(a, Tensor) else a

        return self.block(x, *map(like, self.arguments))


def built(name: str) -> tuple[Given, Tensor]:
    """Return a block with random parameters, and an input."""
    build, shape, arguments = BLOCKS[name]
    return small(Given(build(), arguments)), torch.randn(2, *shape)


def vit(depth: int = 3, **options: Any) -> Any:
    return small(
        VIT.VisionTransformer(
            img_size=16, patch_size=8, embed_dim=DIM, depth=depth, num_heads=2, num_classes=5,
            **options,
        )
    )  # fmt: skip


def rms_vit() -> Any:
    return vit(norm_layer=timm.layers.RmsNorm)


def swin() -> Any:
    return small(
        MODELS.SwinTransformer(
            img_size=32, patch_size=4, window_size=4, embed_dim=DIM, depths=(2, 2),
            num_heads=(2, 2), num_classes=5, drop_path_rate=0.0,
        )
    )  # fmt: skip


def images(size: int = 16) -> Tensor:
    return torch.randn(2, 3, size, size)


WHOLE: list[tuple[Callable[[], Any], int, int]] = [(vit, 16, 5), (rms_vit, 16, 5), (swin, 32, 6)]
each_model = pytest.mark.parametrize(("build", "size", "folds"), WHOLE)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the fused calls of an addition and a norm."""
    calls: list[str] = []

    def count(name: str) -> None:
        function = getattr(lightning_kernels, name)

        def counted(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return function(*args, **options)

        monkeypatch.setattr(lightning_kernels, name, counted)

    count("add_dropout_layer_norm")
    count("add_dropout_rms_norm")
    return calls


@pytest.fixture
def folding(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return ``calls``, where fused forwards run also in float64 and where no kernels run.

    torch's functions then compute the calls, and float64 shows that the forwards are right.
    """
    monkeypatch.setattr(lightning_kernels, "route", lambda x: "triton")
    return calls


@pytest.fixture
def global_hook() -> Iterator[Callable[[], None]]:
    """Return a function that registers a hook on all modules. The test removes it at its end."""
    handles: list[Any] = []

    def register() -> None:
        handles.append(hooks.register_module_forward_hook(lambda *_: None))

    yield register
    for handle in handles:
        handle.remove()


def close(actual: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def sums(report: Report) -> list[Folded]:
    return [fold for fold in report.folded if "add + " in fold.chain and "Norm" in fold.chain[6:]]


def test_each_class_is_tested() -> None:
    twins = [twin for twin in blocks.fused_blocks().values() if "timm_transf" in twin.__module__]
    assert {twin.__qualname__ for twin in twins} == {name.replace(".", "_") for name in BLOCKS}


@pytest.mark.parametrize("training", [True, False])
@each_block
def test_each_block_in_float64(name: str, training: bool, folding: list[str]) -> None:
    plain, x = built(name)
    plain, x = plain.double().train(training), x.double()
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert {fold.block.rpartition(".")[2] for fold in sums(report)} == {name.partition(".")[2]}
    close(everything(fused, x), everything(plain, x))
    assert len(folding) == len(sums(report)) == len(type(fused.block).branches) - 1


@kernel
@each_block
def test_each_block_is_as_right_as_before(name: str, calls: list[str], device: str) -> None:
    plain, x = built(name)
    plain, x = plain.to(device), x.to(device)
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    near(fused, plain, x)
    assert len(calls) == len(sums(report))


@each_model
@pytest.mark.parametrize("training", [True, False])
def test_blocks_in_a_row_in_float64(
    build: Callable[[], Any], size: int, folds: int, training: bool, folding: list[str]
) -> None:
    """The norm that begins a block is part of the call that ends the block before it."""
    plain, x = build().double().train(training), images(size).double()
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert len(sums(report)) == folds
    before = everything(plain, x)
    close(everything(fused, x), before)
    assert len(folding) == folds
    assert sums(unfuse(fused)) == sums(report)
    assert_equal(everything(fused, x), before)
    assert len(folding) == folds
    assert [type(module) for module in fused.modules()] == [*map(type, plain.modules())]


@kernel
@each_model
def test_models_are_as_right_as_before(
    build: Callable[[], Any], size: int, folds: int, calls: list[str], device: str
) -> None:
    plain, x = build().to(device), images(size).to(device)
    fused = copy.deepcopy(plain)
    fuse(fused)
    near(fused, plain, x)
    assert len(calls) == folds
    assert set(calls) == {f"add_dropout_{'rms' if build is rms_vit else 'layer'}_norm"}


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


NETWORKS = {
    "vit_tiny_patch16_224": 23,
    "deit3_small_patch16_224": 23,
    "eva02_tiny_patch14_224": 12,
    "beit_base_patch16_224": 12,
    "swin_tiny_patch4_window7_224": 20,
    "cait_xxs24_224": 47,
    "convit_tiny": 12,
    "mixer_s32_224": 15,
    "xcit_nano_12_p16_224": 24,
    "nest_tiny": 21,
    "volo_d1_224": 32,
    "pvt_v2_b0": 8,
    "twins_pcpvt_small": 16,
    "gcvit_xxtiny": 12,
    "sequencer2d_s": 32,
    "vit_relpos_small_patch16_224": 12,
    "samvit_base_patch16": 23,
    "crossvit_tiny_240": 24,
    "mobilevit_xxs": 15,
    "maxxvit_rmlp_nano_rw_256": 14,
    "swinv2_tiny_window8_256": 0,  # the norms are before the additions
    "resmlp_12_224": 0,  # affine transformations in place of norms
}


@pytest.mark.plain
@pytest.mark.parametrize("name", NETWORKS)
def test_number_of_folds(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert len(sums(fuse(model))) == NETWORKS[name]


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
    change: Callable[[Any], Any], place: str, folds: int, folding: list[str]
) -> None:
    plain, x = vit().double(), images().double()
    fused = copy.deepcopy(plain)
    fuse(fused)
    change(fused.get_submodule(place))
    seen: list[nn.Module] = []
    if change is hook:
        fused.get_submodule(place).register_forward_hook(lambda module, *_: seen.append(module))
    close(everything(fused, x), everything(plain, x))
    assert len(folding) == folds
    assert len(seen) == (change is hook)


def test_global_hooks_run(folding: list[str], global_hook: Callable[[], None]) -> None:
    plain, x = vit().double(), images().double()
    fused = copy.deepcopy(plain)
    fuse(fused)
    global_hook()
    close(everything(fused, x), everything(plain, x))
    assert not folding


class OwnForward(VIT.Block):  # type: ignore[misc]  # untyped
    @override
    def forward(self, x: Tensor, **options: Any) -> Any:
        return super().forward(x, **options) / 2


class OwnName(VIT.Block):  # type: ignore[misc]  # untyped
    """A subclass that changes nothing."""


def test_subclasses(folding: list[str]) -> None:
    plain = nn.Sequential(OwnName(DIM, 2), VIT.Block(DIM, 2), OwnForward(DIM, 2))
    plain = small(plain).double()
    fused, x = copy.deepcopy(plain), torch.randn(2, *TOKENS).double()
    report = fuse(fused)
    assert [fold.names for fold in report.folded] == [("0.norm2",), ("1.norm1",), ("1.norm2",)]
    assert [(left.names, left.reason) for left in report.skipped] == [
        (("2",), "not folded: OwnForward overrides forward")
    ]
    expected = everything(plain, x)
    for each in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        del folding[:]
        assert isinstance(each[0], OwnName)
        close(everything(each, x), expected)
        assert len(folding) == 3
        unfuse(each)
        assert [type(child) for child in each] == [OwnName, VIT.Block, OwnForward]


def test_a_changed_forward_runs(folding: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit().double()
    fuse(model)
    monkeypatch.setattr(VIT.Block, "forward", lambda self, x: 2 * x)
    x = torch.randn(2, *TOKENS).double()
    torch.testing.assert_close(model.blocks(x), 8 * x)
    assert not folding


class OtherNorm(nn.LayerNorm):
    @override
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / 2


def fast_norm(*args: Any) -> Any:
    norm = timm.layers.LayerNorm(*args)
    norm._fast_norm = True
    return norm


@pytest.mark.parametrize("norm", [OtherNorm, nn.BatchNorm1d, nn.Identity, fast_norm])
def test_other_norms_are_called(norm: Any, folding: list[str]) -> None:
    shape = (2, DIM, DIM) if norm is nn.BatchNorm1d else (2, *TOKENS)
    plain = nn.Sequential(VIT.Block(DIM, 2), VIT.Block(DIM, 2)).double()
    plain[1].norm1, plain[0].norm2 = (norm(DIM).double() for _ in range(2))
    fused, x = copy.deepcopy(plain), torch.randn(*shape).double()
    report = fuse(fused)
    assert [fold.names for fold in sums(report)] == [("1.norm2",)]
    close(everything(fused, x), everything(plain, x))
    assert len(folding) == 1


def test_a_norm_whose_class_changes_later(folding: list[str]) -> None:
    fused = vit().double()
    fuse(fused)
    for block in fused.blocks:
        parametrizations.weight_norm(block.norm1)
    plain, x = copy.deepcopy(fused), images().double()
    unfuse(plain)
    close(everything(fused, x), everything(plain, x))
    assert len(folding) == 3  # ``norm2`` of each block


@pytest.mark.parametrize("scheduled", [True, False])
def test_drops_draw_the_same_numbers(
    scheduled: bool, folding: list[str], global_hook: Callable[[], None]
) -> None:
    model = vit(drop_path_rate=0.6, proj_drop_rate=0.3, pos_drop_rate=0.2, init_values=0.5)
    model, x = model.double(), images().double()
    fuse(model)
    for module in model.modules():
        if scheduled and isinstance(module, ScheduledRate):
            module.schedule_rate()
    folded = everything(model, x)
    assert len(folding) == 5
    global_hook()
    close(everything(model, x), folded)
    assert len(folding) == 5


@kernel
def test_drops_of_kernels_draw_the_same_numbers(
    device: str, calls: list[str], global_hook: Callable[[], None]
) -> None:
    model = vit(drop_path_rate=0.6, proj_drop_rate=0.3, init_values=0.5).to(device)
    x = images().to(device)
    fuse(model)
    folded = everything(model, x)
    assert len(calls) == 5
    global_hook()
    for one, other in zip(everything(model, x), folded, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
    assert len(calls) == 5


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool, folding: list[str]) -> None:
    """Blocks run one by one there, so only the norms inside of blocks are folded."""
    plain, x = vit().double(), images().double()
    fused = copy.deepcopy(plain)
    fuse(fused)
    fused.set_grad_checkpointing()
    close(everything(fused, x), everything(plain, x))
    assert len(folding) == 6  # each in the forward, and again in the backward
    del folding[:]
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
    assert len(folding) == 10


def test_other_ways_to_run_the_blocks(folding: list[str]) -> None:
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
    assert len(folding) == 7


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
    build: Callable[[], Any], size: int, folds: int, backend: str, folding: list[str]
) -> None:
    plain, x = build().double(), images(size).double()
    fused = copy.deepcopy(plain)
    fuse(fused)
    torch.compiler.reset()
    close(
        everything(torch.compile(fused, backend=backend, fullgraph=True), x), everything(plain, x)
    )
    assert len(folding) == folds


@kernel
@pytest.mark.parametrize("init_values", [None, 0.5])
def test_autocast_keeps_the_precision_of_the_stream(
    init_values: float | None, calls: list[str], device: str, monkeypatch: pytest.MonkeyPatch
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
    assert len(calls) == 5
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
