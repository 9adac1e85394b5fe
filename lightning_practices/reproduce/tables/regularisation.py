"""S1, table 1: a residual network with each kind of noise, on few labels or a folder of images."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torchvision.transforms import v2

from lightning_practices.callbacks import DropRateSchedule
from lightning_practices.data import AugmentationName
from lightning_practices.nn import (
    DropBlock2d,
    DropCluster2d,
    Dropout,
    Dropout2d,
    LabelSmoothingCrossEntropyLoss,
    StochasticDepth,
    fit_drop_clusters,
)
from lightning_practices.optim import Optimizer
from lightning_practices.reproduce._data import digits
from lightning_practices.reproduce._fit import Classifier, test, train
from lightning_practices.reproduce._folder import Folder
from lightning_practices.reproduce._networks import small_resnet, torchvision_resnet
from lightning_practices.reproduce._table import Column, Table
from lightning_practices.schedules import LearningRateSchedule

STEPS, BATCH = 1000, 20
CLUSTERS = 8

NOISE: dict[str, Callable[[float], dict[str, Any]]] = {
    "dropout": lambda p: {"last": lambda: Dropout(p)},
    "spatial dropout": lambda p: {"noise": lambda: Dropout2d(p)},
    "DropPath": lambda p: {"path": lambda: StochasticDepth(p, "row")},
    "DropBlock": lambda p: {"noise": lambda: DropBlock2d(p, block_size=3)},
    "DropCluster": lambda p: {"noise": lambda: DropCluster2d(p, CLUSTERS)},
}


def experiment(
    seed: int,
    labels: int,
    noise: str | None = None,
    p: float = 0.0,
    augment: AugmentationName | None = None,
    smoothing: float = 0.0,
    steps: int = STEPS,
) -> dict[str, float]:
    """Train a small residual network on digits."""
    data = digits(seed, labels, batch_size=BATCH, augment=augment)

    def make() -> Classifier:
        network = small_resnet(10, **({} if noise is None else NOISE[noise](p)))
        if noise == "DropCluster":
            fit_drop_clusters(network, [images for images, _ in data.train_dataloader()])
        loss = LabelSmoothingCrossEntropyLoss(label_smoothing=smoothing)
        return Classifier(
            network, loss=loss, optimizer=Optimizer("adamw", lr=3e-3), schedule="cosine"
        )

    return test(train(make, data, seed, max_steps=steps, limit_val_batches=0), data)


IMAGE, RESIZED, BATCH_ON_FOLDER, EPOCHS = 224, 256, 128, 270  # those of the recipe
WARMUP = 5 / 270  # of the steps
WORKERS = min(8, os.cpu_count() or 1)

NOISE_ON_FOLDER: dict[str, Callable[[float], dict[str, Any]]] = {
    "dropout": lambda p: {"p": p, "noise": Dropout},
    "spatial dropout": lambda p: {"p": p, "noise": Dropout2d},
    "DropPath": lambda p: {"path": lambda: StochasticDepth(p, "row")},
    "DropBlock": lambda p: {"p": p, "noise": lambda rate: DropBlock2d(rate, block_size=7)},
}


def experiment_on_folder(
    seed: int,
    data: str,
    noise: str | None = None,
    p: float = 0.0,
    augment: AugmentationName | None = None,
    smoothing: float = 0.0,
    architecture: str = "resnet50",
    image_size: int = IMAGE,
    resize: int = RESIZED,
    batch_size: int = BATCH_ON_FOLDER,
    epochs: int = EPOCHS,
    workers: int = WORKERS,
) -> dict[str, float]:
    """Train ResNet-50 on a folder of images, as the recipe ``image_folder_resnet50`` does.

    Batches are of 128 and the learning rate is scaled with them, so that one GPU does without
    accumulated gradients. Only DropBlock's rate rises during the fit.
    """
    crop = v2.RandomResizedCrop(image_size, antialias=True)
    images = Folder(
        data, seed, batch_size, image_size=image_size, resize=resize, num_workers=workers,
        preprocess="standardize", augment=[crop, "flip", *([] if augment is None else [augment])],
    )  # fmt: skip
    steps = epochs * len(images.train_dataloader())

    def make() -> Classifier:
        return Classifier(
            torchvision_resnet(
                architecture, images.num_classes,
                **({} if noise is None else NOISE_ON_FOLDER[noise](p)),
            ),
            images.num_classes,
            LabelSmoothingCrossEntropyLoss(label_smoothing=smoothing),
            optimizer=Optimizer("nesterov", lr=0.4 * batch_size / 1024, weight_decay=1e-4),
            schedule=LearningRateSchedule("cosine", warmup_steps=round(WARMUP * steps)),
        )  # fmt: skip

    model = train(
        make, images, seed, max_epochs=epochs, limit_val_batches=0,
        callbacks=[DropRateSchedule("linear")] if noise == "DropBlock" else [],
        precision="bf16-mixed" if torch.accelerator.is_available() else "32-true",
    )  # fmt: skip
    return test(model, images)


LECTURE = {
    "none": 76.51, "dropout 0.3": 76.80, "DropPath 0.1": 77.10, "spatial dropout 0.1": 77.41,
    "cutout": 76.52, "AutoAugment": 77.63, "label smoothing 0.1": 77.17, "DropBlock 0.1": 78.13,
    "DropBlock and label smoothing": 78.35,
}  # fmt: skip

ROWS: dict[str, dict[str, Any]] = {
    "none": {},
    "dropout 0.3": {"noise": "dropout", "p": 0.3},
    "spatial dropout 0.1": {"noise": "spatial dropout", "p": 0.1},
    "DropPath 0.1": {"noise": "DropPath", "p": 0.1},
    "cutout": {"augment": "cutout"},
    "AutoAugment": {"augment": "auto"},
    "label smoothing 0.1": {"smoothing": 0.1},
    "DropBlock 0.1": {"noise": "DropBlock", "p": 0.1},
    "DropBlock and label smoothing": {"noise": "DropBlock", "p": 0.1, "smoothing": 0.1},
}
SOURCE = "S1, table 1 (ResNet-50 on ImageNet; G. Ghiasi and others, 2018)"
CLAIM = "DropBlock with label smoothing gains 1.8 points over none, cutout nothing"

ON_FOLDER = Table(
    name="regularisation",
    title="Kinds of noise in ResNet-50, on a folder of images",
    source=SOURCE,
    claim=CLAIM,
    experiment=experiment_on_folder,
    rows=ROWS,
    columns={"accuracy": Column("accuracy", lecture=LECTURE)},
    reference="none",
    tiny={
        "architecture": "resnet18", "image_size": 32, "resize": 36, "batch_size": 8, "epochs": 1,
        "workers": 0,
    },
    alone=True,
)  # fmt: skip

TABLE = Table(
    name="regularisation",
    title="Kinds of noise in a residual network",
    source=SOURCE,
    claim=CLAIM,
    experiment=experiment,
    rows={**ROWS, "DropCluster 0.1": {"noise": "DropCluster", "p": 0.1}},
    columns={
        "100 labels": Column("accuracy", settings={"labels": 100}),
        "900 labels": Column("accuracy", settings={"labels": 900}, lecture=LECTURE),
    },
    reference="none",
    tiny={"steps": 5},
    on_folder=ON_FOLDER,
)
