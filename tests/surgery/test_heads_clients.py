"""New heads of models of other libraries, against models that these libraries make."""

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSClassificationHead
from torchvision.models.detection.retinanet import RetinaNetClassificationHead
from typing_extensions import override

from lightning_practices.surgery import blocks, feature_extractor, replace_head
from tests.surgery.clients import client, needs, package_of
from tests.surgery.test_blocks_clients import BLOCKS, HeadFirst, example_of
from tests.surgery.test_transfer_freeze import changed, state

pytestmark = pytest.mark.plain

MOBILE = [
    "timm/efficientnet_lite0", "timm/mobilenetv3_large_100", "timm/mobilenetv4_conv_medium",
    "timm/lcnet_050", "timm/tinynet_e", "timm/mnasnet_small", "timm/hardcorenas_a",
    "timm/repghostnet_050", "timm/mobilevitv2_050", "timm/mobilenetv2_050", "timm/hgnet_tiny",
]  # fmt: skip
REFUSED = {
    "transformers/e5": "XLMRobertaModel has no head for labels: load the weights into",
    "transformers/yolos": "has several outputs, 'class_labels_classifier.* and 'bbox_predictor.*4:",
    "transformers/clip": "CLIPModel has no head for labels",
}
_SIZES = ("num_classes", "num_labels", "num_columns")


def these(names: Any) -> list[Any]:
    return [pytest.param(name, marks=needs(package_of(name))) for name in names]


def sizes(model: nn.Module) -> dict[str, Any]:
    """Return all shapes of a model, and the numbers of classes that its modules hold."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    numbers = {
        f"{name}: {key}": vars(module)[key]
        for name, module in model.named_modules()
        for key in _SIZES
        if isinstance(vars(module).get(key), int)
    }
    labels = {
        f"{name}: labels": (module.config.num_labels, module.config.id2label)
        for name, module in model.named_modules()
        if hasattr(module, "config") and hasattr(module.config, "id2label")
    }
    return shapes | numbers | labels


@pytest.mark.parametrize(
    "name", these([name for name in (*BLOCKS, *MOBILE) if name not in REFUSED])
)
def test_a_new_head_is_the_one_that_the_library_makes(name: str) -> None:
    model = client(name)
    before = dict(model.named_parameters())
    new = replace_head(model, 7)
    assert sizes(model) == sizes(client(name, 7))
    changed = {key for key, p in model.named_parameters() if before.get(key) is not p}
    assert {key.rpartition(".")[0] for key in changed} == set(new)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", these(REFUSED))
def test_outputs_that_are_no_classes_are_refused(name: str) -> None:
    model = client(name)
    before, parameters = sizes(model), list(model.parameters())
    with pytest.raises(ValueError, match=REFUSED[name]):
        replace_head(model, 7)
    assert sizes(model) == before
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))


@needs("transformers")
@pytest.mark.parametrize(("task", "message"), [
    ("QuestionAnswering", "outputs the starts and ends of answers"),
    ("MultipleChoice", "ends in 'classifier' with 1 outputs, but its config.num_labels is 5"),
    ("MaskedLM", "whose weight is shared with Embedding"),
    ("PreTraining", "the head has several outputs, 'cls.predictions.decoder' with 500 and"),
])  # fmt: skip
def test_tasks_without_labels_are_refused(task: str, message: str) -> None:
    import transformers

    from tests.surgery.clients import TRANSFORMERS

    labels = 2 if task == "QuestionAnswering" else 5
    config = transformers.BertConfig(**TRANSFORMERS["bert"][2], num_labels=labels)
    with torch.device("meta"):
        model = getattr(transformers, f"BertFor{task}")(config)
    with pytest.raises(ValueError, match=message):
        replace_head(model, 7)
    assert config.num_labels == labels


@needs("transformers")
def test_labels_of_transformers_learn() -> None:
    model = client("transformers/xlm-roberta", 1, device="cpu")
    batch = example_of("transformers/xlm-roberta", model)
    model(**batch, labels=torch.tensor([0.5, 1.0]))
    assert model.config.problem_type in ("regression", None)
    feature_extractor(model, 3)
    output = model(**batch, labels=torch.tensor([0, 2]))
    assert output.logits.shape == (2, 3)
    expected = nn.functional.cross_entropy(output.logits, torch.tensor([0, 2]))
    torch.testing.assert_close(output.loss, expected)
    assert model.config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}


def test_a_detector_learns_new_classes() -> None:
    torch.manual_seed(2)
    model = client("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", 91, device="cpu").train()
    model.transform.min_size, model.transform.max_size = (64,), 64
    names = feature_extractor(model, 3)
    targets = [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([2])}] * 2
    losses = model(list(torch.rand(2, 3, 64, 64)), targets)
    (losses["loss_classifier"] + losses["loss_box_reg"]).backward()
    assert losses["loss_box_reg"].isfinite()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(names)
    assert {name.rpartition(".")[0] for name in names} == {
        "roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"
    }  # fmt: skip


@pytest.mark.parametrize("cls", [RetinaNetClassificationHead, FCOSClassificationHead])
def test_a_focal_head_starts_as_torchvision_s(cls: Any) -> None:
    torch.manual_seed(2)
    head, expected = cls(32, 3, 5), cls(32, 3, 7).cls_logits
    replace_head(nn.ModuleDict({"body": nn.Linear(4, 32), "head": head}), 7)
    new = head.cls_logits
    torch.testing.assert_close(new.bias, expected.bias)
    assert abs(new.weight.std().item() - 0.01) < 0.001


class Segmenter(nn.Module):
    """A convolution as head, with a shape of its own."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body: nn.Module = nn.Linear(4, 4)
        self.head = head


@pytest.mark.parametrize("head", [
    nn.Conv1d(4, 2, 5, stride=2, padding=3),
    nn.Conv2d(4, 2, (3, 1), padding=(1, 0), dilation=2, padding_mode="reflect", bias=False),
    nn.Conv2d(4, 2, 3, padding="same"),
    nn.Conv3d(4, 2, 3, padding=1),
    nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose3d(4, 2, 2, stride=2),
], ids=repr)  # fmt: skip
def test_convolutions_keep_their_shape(head: Any) -> None:
    model = Segmenter(head).double()
    torch.manual_seed(5)
    assert replace_head(model, 3) == ("head",)
    expected = repr(head).replace("(4, 2,", "(4, 3,")
    assert repr(model.head) == expected
    x = torch.randn(2, 4, *[9] * len(head.kernel_size), dtype=torch.float64)
    y, z = model.head(x), head(x)
    assert (y.shape[1], y.shape[2:], y.dtype) == (3, z.shape[2:], z.dtype)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(8, 8)
        self.classes = nn.Linear(8, 3)
        self.boxes = nn.Linear(8, 4)


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(8, 8)
        self.head = nn.Module()
        self.head.cls_score, self.head.bbox_pred = nn.Linear(8, 3), nn.Linear(8, 12)


@pytest.mark.parametrize("model", [TwoHeads(), Both()], ids=["children", "in one child"])
def test_several_outputs_are_refused(model: nn.Module) -> None:
    before = state(model)
    with pytest.raises(
        ValueError, match=r"the head has several outputs, '.*' with 3 and '.*' with"
    ):
        replace_head(model, 5)
    assert changed(model, before) == set()


class Projected(HeadFirst):
    @override
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).softmax(-1)


def test_an_example_shows_which_layer_is_the_head() -> None:
    example = torch.randn(2, 5)
    model = Projected(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8)), 8)
    with pytest.raises(ValueError, match="the order of the blocks of Projected is not clear"):
        replace_head(model, 6)
    with pytest.raises(ValueError, match="the order of the blocks of Projected is not clear"):
        feature_extractor(model)
    assert replace_head(model, 6, example=example) == ("top",)
    assert model(example).shape == (2, 6)
    assert feature_extractor(model, 4, example=example) == ("top.weight", "top.bias")
    assert model(example).shape == (2, 4)


def test_auxiliary_classifiers_of_a_backbone_are_not_the_head() -> None:
    with torch.device("meta"):
        backbone = torchvision.models.googlenet(weights=None, init_weights=False)
        model = Segmenter(nn.Linear(1000, 3))
        model.body = backbone
    assert replace_head(model, 7) == ("head",)
    assert backbone.aux1.fc2.out_features == 1000


@needs("monai")
def test_a_residual_head_of_monai_is_refused() -> None:
    from monai.networks.nets import UNet

    model = UNet(3, 1, 5, channels=(4, 8), strides=(2,), num_res_units=2)
    before = state(model)
    with pytest.raises(ValueError, match="of a ResidualUnit, which adds its input to its output"):
        replace_head(model, 7)
    assert changed(model, before) == set()


@needs("segmentation_models_pytorch")
def test_a_model_of_smp_with_two_heads_is_refused() -> None:
    import segmentation_models_pytorch as smp

    model = smp.Unet("resnet18", encoder_weights=None, classes=2, aux_params={"classes": 4})
    assert blocks(model)[0].modules == ("segmentation_head", "classification_head")
    with pytest.raises(
        ValueError, match=r"several outputs, 'segmentation_head\.0' with 2 and 'class"
    ):
        replace_head(model, 7)
