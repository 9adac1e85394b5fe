"""S2: a pretrained network on few labels: as feature extractor, all at once, step by step."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC
from typing_extensions import override

from lightning_practices.callbacks import ProgressiveUnfreezing
from lightning_practices.optim import Optimizer
from lightning_practices.reproduce._data import solar_cells
from lightning_practices.reproduce._fit import Classifier, test, train
from lightning_practices.reproduce._networks import efficientnet_lite0
from lightning_practices.reproduce._table import Column, Table
from lightning_practices.surgery import feature_extractor, freeze, replace_head

CLASSES, SIZE, BATCH = 2, 96, 16
MEAN, STD = 0.5, 0.5  # of the inputs that the weights were trained with
SCRATCH, EXTRACTOR, AT_ONCE = "from scratch", "feature extractor", "all at once"
FROZEN_NORMS, PROGRESSIVE = "all at once, batch norms frozen", "progressive unfreezing"


class Cells(Classifier):
    """A classifier of grey images by a network for colours, that logs the area under the ROC."""

    def __init__(self, network: nn.Module, **practices: Any) -> None:
        super().__init__(network.to(memory_format=torch.channels_last), CLASSES, **practices)
        self.auroc = BinaryAUROC()

    @override
    def forward(self, x: Tensor) -> Tensor:
        colours = ((x - MEAN) / STD).expand(-1, 3, -1, -1)
        return super().forward(colours.contiguous(memory_format=torch.channels_last))

    @override
    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.auroc(self(batch[0]).softmax(1)[:, 1], batch[1])
        self.log("auroc", self.auroc)
        super().test_step(batch, batch_idx)


def experiment(
    seed: int, method: str, labels: int, lr: float, steps: int, size: int = SIZE
) -> dict[str, float]:
    """Train EfficientNet-Lite0 on some labelled solar cells by one method."""
    data = solar_cells(seed, labels, size, batch_size=BATCH, augment=["flip", "vertical_flip"])

    def make() -> Cells:
        network = efficientnet_lite0(pretrained=method != SCRATCH)
        if method == EXTRACTOR:
            feature_extractor(network, CLASSES)
        else:
            replace_head(network, CLASSES)
        if method == FROZEN_NORMS:
            freeze(network, [name for name, layer in network.named_modules() if _is_norm(layer)])
        return Cells(network, optimizer=Optimizer("adamw", lr=lr), schedule="cosine")

    callbacks = [ProgressiveUnfreezing()] if method == PROGRESSIVE else []
    model = train(make, data, seed, max_steps=steps, limit_val_batches=0, callbacks=callbacks)
    metrics = test(model, data)
    return {**metrics, "auroc": 100 * metrics["auroc"]}


def _is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.BatchNorm2d)


# AdamW's first rates: those of the best mean area, on 50 labels by the seeds 1000 and 1001, and on
# 200 labels by 1000. Each method was tried at rates a factor of 3 apart, on both sides of its best.
RATES = {SCRATCH: 3e-3, EXTRACTOR: 1e-2, AT_ONCE: 1e-3, FROZEN_NORMS: 3e-4, PROGRESSIVE: 3e-3}
STEPS = {50: 60, 200: 120, 2000: 300}  # by the number of labels

TABLE = Table(
    name="transfer",
    title="A pretrained network on few labels",
    source="S0, S2",
    claim="freeze the pretrained layers and train a new head, then unfreeze the top layers at a "
    "reduced rate; the more data, the more layers",
    experiment=experiment,
    rows={method: {"method": method, "lr": lr} for method, lr in RATES.items()},
    columns={
        f"{labels} labels": Column("auroc", "%", {"labels": labels, "steps": steps}, x=labels)
        for labels, steps in STEPS.items()
    },
    reference=EXTRACTOR,
    tiny={"steps": 2, "size": 32, "labels": 32},
    axis="labelled images",
    log_axis=True,
)
