"""S2: a pretrained network on few labels: as feature extractor, all at once, step by step."""

from typing import Any

from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC
from typing_extensions import override

from lightning_practices.callbacks import ProgressiveUnfreezing
from lightning_practices.optim import Optimizer
from lightning_practices.reproduce._data import solar_cells
from lightning_practices.reproduce._fit import Classifier, test, train
from lightning_practices.reproduce._networks import efficientnet_lite0
from lightning_practices.reproduce._table import Column, Table
from lightning_practices.surgery import feature_extractor, replace_head

CLASSES, SIZE, BATCH = 2, 96, 16
MEAN, STD = 0.5, 0.5  # of the inputs that the weights were trained with
SCRATCH, EXTRACTOR, AT_ONCE = "from scratch", "feature extractor", "all at once"
PROGRESSIVE = "progressive unfreezing"


class Cells(Classifier):
    """A classifier of grey images by a network for colours, that logs the area under the ROC."""

    def __init__(self, network: nn.Module, **practices: Any) -> None:
        super().__init__(network, CLASSES, **practices)
        self.auroc = BinaryAUROC()

    @override
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(((x - MEAN) / STD).expand(-1, 3, -1, -1))

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
        return Cells(network, optimizer=Optimizer("adamw", lr=lr), schedule="cosine")

    callbacks = [ProgressiveUnfreezing()] if method == PROGRESSIVE else []
    model = train(make, data, seed, max_steps=steps, limit_val_batches=0, callbacks=callbacks)
    metrics = test(model, data)
    return {**metrics, "auroc": 100 * metrics["auroc"]}


TABLE = Table(
    name="transfer",
    title="A pretrained network on few labels",
    source="S0, S2",
    claim="freeze the pretrained layers and train a new head, then unfreeze the top layers at a "
    "reduced rate; the more data, the more layers",
    experiment=experiment,
    rows={
        SCRATCH: {"method": SCRATCH, "lr": 1e-3},
        EXTRACTOR: {"method": EXTRACTOR, "lr": 1e-3},
        AT_ONCE: {"method": AT_ONCE, "lr": 5e-4},
        PROGRESSIVE: {"method": PROGRESSIVE, "lr": 1e-3},
    },
    columns={
        f"{labels} labels": Column("auroc", "%", {"labels": labels, "steps": steps}, x=labels)
        for labels, steps in ((50, 120), (200, 250), (2000, 600))
    },
    reference=EXTRACTOR,
    tiny={"steps": 2, "size": 32, "labels": 32},
    axis="labelled images",
    log_axis=True,
)
