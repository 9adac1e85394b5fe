"""The blocks of models of other libraries: how many, the head first, embeddings last."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from lightning_practices.callbacks import unfreezing_schedule
from lightning_practices.optim import layer_depths
from lightning_practices.surgery import blocks, feature_extractor
from tests.surgery.clients import TOKENS, client, needs, package_of
from tests.surgery.test_blocks import assert_partition, network
from tests.surgery.test_transfer_freeze import changed, state

pytestmark = pytest.mark.plain

# The number of blocks, the head, and the block next to the input.
BLOCKS = {
    "transformers/bert": (6, "classifier", "bert.embeddings"),
    "transformers/minilm": (6, "classifier", "bert.embeddings"),
    "transformers/e5": (5, "pooler", "embeddings"),
    "transformers/roberta": (5, "classifier", "roberta.embeddings"),
    "transformers/xlm-roberta": (5, "classifier", "roberta.embeddings"),
    "transformers/xlm-roberta-tokens": (5, "classifier", "roberta.embeddings"),
    "transformers/camembert": (5, "classifier", "roberta.embeddings"),
    "transformers/deberta-v3": (6, "classifier", "deberta.embeddings"),
    "transformers/distilbert": (6, "classifier", "distilbert.embeddings"),
    "transformers/electra": (6, "classifier", "electra.embeddings"),
    "transformers/mpnet": (5, "classifier", "mpnet.embeddings"),
    "transformers/albert": (4, "classifier", "albert.embeddings"),
    "transformers/modernbert": (6, "classifier", "model.embeddings"),
    "transformers/xlm": (5, "sequence_summary", "transformer.position_embeddings"),
    "transformers/xlnet": (6, "logits_proj", "transformer.word_embedding"),
    "transformers/bart": (7, "classification_head", "model.shared"),
    "transformers/mbart": (7, "classification_head", "model.shared"),
    "transformers/t5": (7, "classification_head", "transformer.shared"),
    "transformers/mt5-encoder": (4, "classifier", "transformer.shared"),
    "transformers/gpt2": (5, "score", "transformer.wte"),
    "transformers/opt": (5, "score", "model.decoder.embed_tokens"),
    "transformers/gemma": (5, "score", "model.embed_tokens"),
    "transformers/llama": (5, "score", "model.embed_tokens"),
    "transformers/qwen2": (5, "score", "model.embed_tokens"),
    "transformers/vit": (5, "classifier", "vit.embeddings"),
    "transformers/deit-distilled": (5, "distillation_classifier", "deit.embeddings"),
    "transformers/dinov2": (5, "classifier", "dinov2.embeddings"),
    "transformers/swin": (5, "classifier", "swin.embeddings"),
    "transformers/convnext": (6, "classifier", "convnext.embeddings"),
    "transformers/resnet": (6, "classifier", "resnet.embedder"),
    "transformers/mobilevit": (8, "classifier", "mobilevit.conv_stem"),
    "transformers/segformer": (18, "decode_head.classifier", "segformer.stages.0.patch_embeddings"),
    "transformers/yolos": (6, "bbox_predictor", "vit.embeddings"),
    "transformers/upernet": (6, "decode_head", "backbone.embedder"),
    "transformers/timm": (10, "timm_model.fc", "timm_model.conv1"),
    "transformers/clip": (9, "text_projection", "text_model.embeddings"),
    "transformers/wav2vec2": (9, "classifier", "wav2vec2.feature_extractor.conv_layers.0"),
    "transformers/wav2vec2-conformer": (
        9,
        "classifier",
        "wav2vec2_conformer.feature_extractor.conv_layers.0",
    ),
    "transformers/hubert": (9, "classifier", "hubert.feature_extractor.conv_layers.0"),
    "transformers/whisper": (7, "classifier", "encoder.embed_positions"),
    "transformers/ast": (5, "classifier", "audio_spectrogram_transformer.embeddings"),
    "timm/resnet18": (10, "fc", "conv1"),
    "timm/vit_tiny_patch16_224": (14, "head", "patch_embed"),
    "timm/convnext_atto": (14, "head", "stem"),
    "timm/efficientnet_b0": (18, "classifier", "conv_stem"),
    "timm/mobilenetv3_small_050": (14, "classifier", "conv_stem"),
    "timm/mobilenetv4_conv_small_050": (19, "classifier", "conv_stem"),
    "timm/mobilevit_xxs": (12, "head", "stem"),
    "timm/ghostnet_050": (19, "classifier", "conv_stem"),
    "timm/fastvit_t8": (12, "head", "stem"),
    "timm/repvit_m1": (22, "head", "stem"),
    "timm/efficientformerv2_s0": (6, "head_dist", "stem"),
    "timm/levit_128": (14, "head_dist", "stem"),
    "timm/edgenext_xx_small": (14, "head", "stem"),
    "timm/deit_tiny_distilled_patch16_224": (14, "head_dist", "patch_embed"),
    "timm/swin_tiny_patch4_window7_224": (14, "head", "patch_embed"),
    "torchvision/resnet18": (10, "fc", "conv1"),
    "torchvision/vit_b_16": (14, "heads", "conv_proj"),
    "torchvision/convnext_tiny": (23, "classifier", "features.0"),
    "torchvision/mobilenet_v3_small": (15, "classifier.3", "features.0"),
    "torchvision/swin_t": (17, "head", "features.0"),
    "torchvision/fasterrcnn_mobilenet_v3_large_fpn": (
        21,
        "roi_heads.box_predictor",
        "backbone.body.0",
    ),
    "torchvision/maskrcnn_resnet50_fpn": (21, "roi_heads.mask_predictor", "backbone.body.conv1"),
    "torchvision/keypointrcnn_resnet50_fpn": (
        21,
        "roi_heads.keypoint_predictor",
        "backbone.body.conv1",
    ),
    "torchvision/retinanet_resnet50_fpn": (19, "head", "backbone.body.conv1"),
    "torchvision/fcos_resnet50_fpn": (19, "head", "backbone.body.conv1"),
    "torchvision/ssd300_vgg16": (24, "head", "backbone.features.0"),
    "torchvision/ssdlite320_mobilenet_v3_large": (33, "head", "backbone.features.0.0"),
    "torchvision/fcn_resnet50": (19, "classifier.4", "backbone.conv1"),
    "torchvision/deeplabv3_mobilenet_v3_large": (20, "classifier.4", "backbone.0"),
    "torchvision/lraspp_mobilenet_v3_large": (18, "classifier", "backbone.0"),
    "torchvision/r3d_18": (10, "fc", "stem"),
    "torchvision/s3d": (15, "classifier", "features.0.0"),
    "torchvision/swin3d_t": (17, "head", "patch_embed"),
    "torchvision/mvit_v1_b": (19, "head", "conv_proj"),
    "smp/Unet": (15, "segmentation_head", "encoder.conv1"),
    "smp/UnetPlusPlus": (11, "segmentation_head", "encoder.conv1"),
    "smp/FPN": (18, "segmentation_head", "encoder.conv1"),
    "smp/DeepLabV3Plus": (16, "segmentation_head", "encoder.conv1"),
    "smp/PSPNet": (11, "segmentation_head", "encoder.conv1"),
    "smp/Linknet": (15, "segmentation_head", "encoder.conv1"),
    "smp/MAnet": (16, "segmentation_head", "encoder.conv1"),
    "smp/Unet-efficientnet-b0": (24, "segmentation_head", "encoder._conv_stem"),
    "smp/Unet-mit_b0": (18, "segmentation_head", "encoder.patch_embed1"),
    "smp/Unet-tu-convnext_atto": (22, "segmentation_head", "encoder.model.stem_0"),
    "smp/Segformer": (11, "segmentation_head", "encoder.conv1"),
    "smp/UPerNet": (11, "segmentation_head", "encoder.conv1"),
    "monai/UNet": (5, "model.2", "model.0"),
    "monai/BasicUNet": (23, "final_conv", "conv_0.conv_0"),
    "monai/SegResNet": (20, "conv_final", "convInit"),
    "monai/UNETR": (26, "out", "vit.patch_embedding"),
    "monai/SwinUNETR": (16, "out", "swinViT.patch_embed"),
}


def these(names: Any) -> list[Any]:
    return [pytest.param(name, marks=needs(package_of(name))) for name in names]


@pytest.mark.parametrize("name", these(BLOCKS))
def test_blocks_of_a_model(name: str) -> None:
    model = client(name)
    found = blocks(model)
    assert (len(found), found[0].name, found[-1].name) == BLOCKS[name]
    assert_partition(model, found)


def of_library(*libraries: str) -> list[str]:
    return [name for name in BLOCKS if name.partition("/")[0] in libraries]


@pytest.mark.parametrize("name", these(of_library("transformers")))
def test_embeddings_of_tokens_are_the_deepest_block(name: str) -> None:
    model = client(name)
    deepest = set(blocks(model)[-1].parameters)
    first = {id(p): name for name, p in model.named_parameters()}
    tokens = [
        first[id(p)]
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings == TOKENS
        for p in module.parameters()
    ]
    assert deepest.issuperset(tokens)


def example_of(name: str, model: Any) -> dict[str, Any]:
    """Return a batch of two for a model of transformers."""
    kind = model.main_input_name
    if kind == "pixel_values":
        size = {"segformer": 64, "mobilevit": 64}.get(name.partition("/")[2], 32)
        return {kind: torch.randn(2, 3, size, size)}
    if kind == "input_features":
        return {kind: torch.randn(2, 8, 40)}
    if kind == "input_values":
        shape = (2, 32, 16) if name.endswith("/ast") else (2, 400)
        return {kind: torch.randn(shape)}
    tokens = torch.tensor([[4, 5, 6, 7, 2], [8, 9, 4, 5, 2]])
    eos = getattr(model.config, "eos_token_id", None)
    tokens[:, -1] = eos if isinstance(eos, int) else 2
    return {"input_ids": tokens}


# The towers of CLIP run side by side, Whisper adds positions after its convolutions, and the
# Conformer does not use its convolution of positions.
_APART = {f"transformers/{kind}" for kind in ("clip", "whisper", "wav2vec2-conformer")}
SEQUENTIAL = [name for name in of_library("transformers") if name not in _APART]


@pytest.mark.parametrize("name", these(SEQUENTIAL))
def test_blocks_of_transformers_are_in_the_order_in_which_they_run(name: str) -> None:
    model = client(name, device="cpu")
    names = [block.name for block in blocks(model, example=example_of(name, model))]
    assert names == [block.name for block in blocks(model)]


# The head, and not the backbone, is new and trained.

SWAPPED = ["transformers/xlm-roberta", "transformers/camembert"]


@pytest.mark.parametrize("name", these(["transformers/bert", *SWAPPED]))
def test_only_the_head_is_trained_where_it_is_registered_first(name: str) -> None:
    torch.manual_seed(3)
    model = client(name, device="cpu").train()
    names = feature_extractor(model)
    assert {name.partition(".")[0] for name in names} == {"classifier"}
    before = state(model)
    batch = example_of(name, model)
    optimizer = SGD(model.parameters(), 0.1)
    model(**batch, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    assert changed(model, before) == set(names)


@pytest.mark.parametrize("name", these(SWAPPED))
def test_unfreezing_starts_at_the_head_and_ends_at_the_embeddings(name: str) -> None:
    model = client(name)
    parts = [phase["blocks"] for phase in unfreezing_schedule(model, at_once=4)]
    layers = [f"roberta.encoder.layer.{i}" for i in (2, 1, 0)]
    assert parts == [["classifier"], [*layers, "roberta.embeddings"]]
    found = layer_depths(model)
    depths = {name: found[p] for name, p in model.named_parameters()}
    assert depths["classifier.out_proj.weight"] == 0
    assert depths["roberta.encoder.layer.2.output.dense.weight"] == 1
    assert depths["roberta.embeddings.word_embeddings.weight"] == 4


@pytest.mark.parametrize("name", these(SWAPPED))
def test_a_regular_expression_has_the_order_of_the_network(name: str) -> None:
    found = blocks(client(name), r"classifier|roberta\.encoder\.layer\.\d|roberta\.embeddings")
    kinds = [block.name.rpartition(".")[2] for block in found]
    assert kinds == ["classifier", "2", "1", "0", "embeddings"]


class HeadFirst(nn.Module):
    """Registers its head before its backbone, in ``forward`` the other way round."""

    def __init__(self, backbone: nn.Module, features: int, name: str = "top") -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Linear(features, 3))
        self.backbone = backbone

    def forward(self, x: Tensor) -> Any:
        return self.get_submodule(self.name)(self.backbone(x))


def backbones() -> dict[str, tuple[nn.Module, int]]:
    convolutions = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    residual = copy.deepcopy(network("resnet18"))
    residual.fc = nn.Identity()
    timm = network("timm/resnet18", num_classes=0)
    return {"convolutions": (convolutions, 16), "torchvision": (residual, 512), "timm": (timm, 512)}


@pytest.mark.parametrize("kind", ["convolutions", "torchvision", "timm"])
def test_an_unclear_order_is_refused_and_an_example_makes_it_clear(kind: str) -> None:
    backbone, features = backbones()[kind]
    model = HeadFirst(backbone, features).to(next(backbone.parameters()).device)
    example = torch.zeros(2, 3, 32, 32, device=next(backbone.parameters()).device)
    with pytest.raises(ValueError, match="'top' seems to be the head") as refused:
        blocks(model)
    assert "│ 0     │ backbone." in str(refused.value)
    with pytest.raises(ValueError, match="the order of the blocks of HeadFirst is not clear"):
        blocks(model, r"top|backbone\.\w+")
    found = blocks(model, example=example)
    assert found[0].parameters == ("top.weight", "top.bias")
    alone = [block.parameters for block in blocks(backbone)]
    assert [
        tuple(name.removeprefix("backbone.") for name in block.parameters) for block in found[1:]
    ] == alone
    assert blocks(model, r"top|backbone\.\w+", example=example)[0].name == "top"
    assert blocks(model, ["top", ""])[0].name == "top"


def test_the_name_of_a_head_makes_an_order_unclear() -> None:
    square = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    with pytest.raises(ValueError, match="'fc' seems to be the head"):
        blocks(HeadFirst(square, 3, "fc"))
    assert blocks(HeadFirst(square, 3, "stem"))[0].name == "backbone.2"


def generator() -> nn.Module:
    body = nn.Sequential(nn.ConvTranspose2d(16, 8, 4), nn.ReLU(), nn.ConvTranspose2d(8, 16, 4))
    return nn.ModuleDict({"fc": nn.Linear(16, 16 * 4), "body": body})


def denoiser() -> nn.Module:
    return nn.ModuleDict({
        "first": nn.Conv2d(3, 8, 1), "time": nn.Linear(5, 8), "down": nn.Conv2d(8, 16, 3),
        "up": nn.ConvTranspose2d(16, 8, 3), "last": nn.Conv2d(8, 3, 3),
    })  # fmt: skip


def concatenating() -> nn.Module:
    return nn.ModuleDict({"fc1": nn.Linear(9, 8), "fc2": nn.Linear(8, 4), "fc3": nn.Linear(6, 2)})


def autoencoder() -> nn.Module:
    return nn.ModuleDict({"encoder": nn.Linear(9, 2), "decoder": nn.Linear(2, 9)})


@pytest.mark.parametrize("make", [generator, denoiser, concatenating, autoencoder])
def test_orders_that_are_clear(make: Any) -> None:
    model = make()
    names = dict.fromkeys(block.name.partition(".")[0] for block in blocks(model))
    assert list(names) == list(model)[::-1]


class InTurns(nn.Module):
    """Runs the layers of two lists in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.mixers = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.channels = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.head = nn.Linear(8, 3)
        self.spare = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Any:
        for mixer, channel in zip(self.mixers, self.channels, strict=True):
            x = channel(mixer(x))
        return self.head(x)


def test_an_example_shows_the_order_of_layers_of_several_lists() -> None:
    names = [block.name for block in blocks(InTurns(), example=torch.randn(2, 8))]
    assert names == ["head", "spare", "channels.1", "mixers.1", "channels.0", "mixers.0"]


def test_an_example_that_does_not_run() -> None:
    model = HeadFirst(nn.Linear(4, 4), 4)
    with pytest.raises(ValueError, match="HeadFirst doesn't run on the example: mat1 and mat2"):
        blocks(model, example=torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"by=\['top', ''\] holds the order .*: leave out example"):
        blocks(model, ["top", ""], example=torch.zeros(2, 4))


def test_an_example_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).eval(), nn.Dropout(), nn.Linear(4, 2))
    before, modes = state(model), [module.training for module in model.modules()]
    assert len(blocks(model, example=torch.randn(8, 4))) == 2
    assert changed(model, before) == set()
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())


# Large vocabularies, shared layers, stages.


class Translator(nn.Module):
    """An encoder and a decoder, under a vocabulary of most parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5000, 8)
        self.transformer = nn.Transformer(8, 2, 2, 3, 16, batch_first=True)
        self.out = nn.Linear(8, 5000, bias=False)
        self.out.weight = self.words.weight


def test_a_vocabulary_does_not_count() -> None:
    names = [
        block.name for block in blocks(nn.ModuleDict({"net": Translator(), "top": Translator()}))
    ]
    assert [name for name in names if name.startswith("top.transformer")] == [
        *(f"top.transformer.decoder.layers.{i}" for i in (2, 1, 0)),
        *(f"top.transformer.encoder.layers.{i}" for i in (1, 0)),
    ]


@needs("transformers")
def test_layers_that_share_parameters_are_one_block_and_the_table_says_so() -> None:
    found = blocks(client("transformers/albert"))
    assert [block.name for block in found] == [
        "classifier", "albert.pooler", "albert.encoder", "albert.embeddings"
    ]  # fmt: skip
    assert "runs 1 layer of parameters 3 times" in " ".join(str(found).split())
    shared = nn.Linear(4, 4)
    repeated = nn.Sequential(*[shared] * 3, nn.Linear(4, 2))
    assert len(blocks(repeated)) == 2
    assert "a list of 4 layers holds 2 of its own" in " ".join(str(blocks(repeated)).split())
    assert "holds" not in str(blocks(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))))


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


class Stage(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(width) for _ in range(depth)])


def test_stages_of_several_widths_are_divided_but_layers_are_not() -> None:
    stages = nn.ModuleList([Stage(4, 2), Stage(8, 2)])
    names = [
        block.name for block in blocks(nn.ModuleDict({"body": stages, "top": nn.Linear(8, 2)}))
    ]
    assert names == ["top", *(f"body.{i}.layers.{j}" for i in (1, 0) for j in (1, 0))]
    same = nn.ModuleList([Layer(4) for _ in range(3)])
    assert len(blocks(nn.ModuleDict({"body": same, "top": nn.Linear(4, 2)}))) == 4


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.classes = nn.Linear(8, 3)
        self.boxes = nn.Linear(8, 4)


def test_heads_side_by_side_are_one_block() -> None:
    found = blocks(Detector())
    assert found[0].modules == ("classes", "boxes")
    assert [block.name for block in found[1:]] == ["backbone.2", "backbone.0"]


class Conformer(nn.Module):
    """As in torchaudio: feed-forward layers are lists within each layer of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.ffn1 = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8))
        self.attention = nn.MultiheadAttention(8, 2)
        self.conv = nn.Sequential(nn.Conv1d(8, 16, 1), nn.GLU(1), nn.Conv1d(8, 8, 3, groups=8))
        self.ffn2 = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8))


def test_layers_of_a_conformer() -> None:
    layers = nn.ModuleList([Conformer() for _ in range(3)])
    model = nn.ModuleDict({
        "subsampling": nn.Linear(4, 8), "conformer": nn.ModuleDict({"conformer_layers": layers}),
        "out": nn.Linear(8, 5),
    })  # fmt: skip
    assert [block.name for block in blocks(model)] == [
        "out", *(f"conformer.conformer_layers.{i}" for i in (2, 1, 0)), "subsampling"
    ]  # fmt: skip
