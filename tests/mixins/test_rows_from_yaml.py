"""Each practice before the first step, by its function and by a fit from a YAML file."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_practices.callbacks import FitPreprocessing, Initialize
from lightning_practices.data import Preprocessing, Standardize, augmentation, preprocessing
from lightning_practices.init import initialize
from lightning_practices.mixins import DataPractices, TrainingPractices

COUNT = 12


class Net(TrainingPractices, LightningModule):
    """Notes the batches of its steps, and the weights with which training begins."""

    def __init__(
        self, scale: Preprocessing | None = None, activation: str = "ReLU", **practices: Any
    ) -> None:
        super().__init__(**practices)
        torch.manual_seed(0)
        self.scale = nn.Identity() if scale is None else scale
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), getattr(nn, activation)(), nn.Flatten(), nn.LazyLinear(2)
        )
        self.body(torch.zeros(1, 3, 8, 8))
        self.got: dict[str, list[Any]] = {"train": [], "val": []}
        self.begins_with: dict[str, Tensor] = {}

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.scale(x))  # type: ignore[no-any-return]

    @override
    def on_train_start(self) -> None:
        self.begins_with = {k: v.clone() for k, v in self.body.state_dict().items()}

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.got["train"].append(batch[0].clone())
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.got["val"].append(batch[0].clone())
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


class Data(DataPractices, LightningDataModule):
    """Noise, whose pixels are in [0, 1]."""

    def __init__(self, **practices: Any) -> None:
        super().__init__(**practices)
        generator = torch.Generator().manual_seed(1)
        self.x = torch.rand(COUNT, 3, 8, 8, generator=generator) * 0.7
        self.y = torch.arange(COUNT) % 2

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(self.x, self.y), batch_size=COUNT)

    val_dataloader = train_dataloader


QUIET = """
seed_everything: 5
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
model: {optimizer: adam, checkpoint: false, early_stopping: null}
"""


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def fitted(text: str, *arguments: str) -> tuple[Net, Data, Any]:
    """Fit by a command line, with a YAML file of this text."""
    Path("quiet.yaml").write_text(QUIET)
    Path("own.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        given = ["net.py", "fit", "--config", "quiet.yaml", "--config", "own.yaml", *arguments]
        patch.setattr(sys, "argv", given)
        run = LightningCLI(Net, Data, save_config_callback=None)
    assert run.trainer.global_step == 1
    return run.model, run.datamodule, run.trainer


PREPROCESSING: dict[str, str] = {
    "center": "preprocess: center",
    "standardize": "preprocess: {0: standardize}",
    "min_max": "preprocess: [min_max]",
    "whiten": """preprocess:
    class_path: lightning_practices.data.Whiten
    init_args: {kind: zca}""",
}


@pytest.mark.parametrize("name", PREPROCESSING)
def test_preprocessing(name: Any) -> None:
    module, data, _ = fitted(f"data:\n  {PREPROCESSING[name]}\n")
    expected = preprocessing(name).fit(data.x)(data.x)
    for split in ("train", "val"):
        torch.testing.assert_close(module.got[split][-1], expected)


def test_preprocessing_by_the_callback() -> None:
    module, data, trainer = fitted("""
trainer:
  callbacks: [{class_path: lightning_practices.callbacks.FitPreprocessing}]
model:
  scale: {class_path: lightning_practices.data.Standardize}
""")
    assert any(isinstance(one, FitPreprocessing) for one in trainer.callbacks)
    torch.testing.assert_close(module.scale(data.x), Standardize().fit(data.x)(data.x))


AUGMENTATION = {  # practice of the lecture: name
    "flips": "flip", "rotation": "rotation", "crop": "crop", "affine": "affine",
    "brightness": "brightness", "shift": "shift", "cutout": "cutout", "AutoAugment": "auto",
}  # fmt: skip


@pytest.mark.parametrize("place", ["workers", "device"])
@pytest.mark.parametrize("name", AUGMENTATION.values(), ids=AUGMENTATION)
def test_augmentation(name: Any, place: str) -> None:
    module, data, _ = fitted(f"data: {{augment: {name}, augment_on: {place}}}")
    augmented = module.got["train"][0]
    changed = [not torch.equal(*pair) for pair in zip(augmented, data.x, strict=True)]
    assert sum(changed) >= 2  # flips leave about half of the images
    assert torch.equal(module.got["val"][-1], data.x)
    one = augmentation(name)
    assert any(not torch.equal(one(data.x[0]), data.x[0]) for _ in range(20))


def test_an_own_augmentation() -> None:
    module, data, _ = fitted("""
data:
  augment:
    class_path: torchvision.transforms.v2.RandomInvert
    init_args: {p: 1.0}
""")
    torch.testing.assert_close(module.got["train"][0], 1 - data.x)


SCHEMES = ["auto", "kaiming_normal", "xavier_normal", "lecun_normal", "orthogonal"]
BY_CALLBACK = """
trainer:
  callbacks:
    - class_path: lightning_practices.callbacks.Initialize
      init_args: {{initialization: {scheme}}}
"""


@pytest.mark.parametrize("door", ["callback", "mixin"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("activation", ["ReLU", "SELU"])
def test_initialisation(door: str, scheme: Any, activation: str) -> None:
    texts = {"mixin": "model: {{initialization: {scheme}}}", "callback": BY_CALLBACK}
    text = texts[door].format(scheme=scheme)
    module, _, trainer = fitted(text, f"--model.activation={activation}")
    twin = Net(activation=activation)
    report = initialize(twin, scheme)
    given = [one for one in trainer.callbacks if isinstance(one, Initialize)]
    made = given[0].report if door == "callback" else module.init_report
    assert [(one.names, one.scheme, one.gain) for one in made.initialized] == [
        (one.names, one.scheme, one.gain) for one in report.initialized
    ]
    for row in made.initialized:
        weight = module.begins_with[row.names[0].removeprefix("body.")]
        assert float(weight.double().std(correction=0)) == row.after
    assert not any(v.any() for name, v in module.begins_with.items() if name.endswith("bias"))


ACTIVATIONS = ["SELU", "ELU", "LeakyReLU", "ReLU", "Tanh", "Sigmoid"]  # by the lecture's order


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_first_layer_has_the_scheme_of_its_activation(activation: str) -> None:
    module, _, _ = fitted(f"model: {{activation: {activation}, initialization: auto}}")
    row = module.init_report.initialized[0]
    expected = {"SELU": "lecun", "Tanh": "xavier", "Sigmoid": "xavier"}.get(activation, "kaiming")
    assert row.scheme.startswith(expected)
    assert row.activation.replace("_", "").startswith(activation.lower())


def test_a_named_module_alone() -> None:
    module, _, _ = fitted("""
model:
  initialization:
    class_path: lightning_practices.init.Initialization
    init_args: {scheme: xavier_uniform, modules: ['body.3']}
""")
    before = Net().body.state_dict()
    same = [name for name in before if torch.equal(before[name], module.begins_with[name])]
    assert same == ["0.weight", "0.bias"]
