"""Fine-tune a ResNet on one process or many: the same file on a CPU, a GPU, a node and a cluster.

    python examples/multi_gpu.py                         # one process; with GPUs, one for each
    python examples/multi_gpu.py --devices 2             # Lightning starts the second process
    torchrun --nproc-per-node 2 examples/multi_gpu.py    # torchrun starts both
    srun python examples/multi_gpu.py                    # SLURM starts them, see docs/many_gpus.md

Processes on GPUs talk through NCCL, those on CPUs through gloo. A small ResNet is pretrained on
scikit-learn's digits 0 to 4, and learns to tell 5 to 9 apart: the head first, then block by block,
with batch norms over all processes, clipped gradients, averaged weights and early stopping. A batch
has 64 images of all processes together, so the result doesn't depend on their number.

``--resume`` goes on from the last checkpoint, which is saved every few steps, and ends with the
same weights as a fit that was never killed, bit for bit. At the end each process prints a hash of
its weights, and the exit status is 1 if they differ.
"""

import argparse
import hashlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
    seed_everything,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchvision.models.resnet import BasicBlock
from typing_extensions import override

from lightning_practices.callbacks import BestCheckpoint, EarlyStopping
from lightning_practices.files import replacing
from lightning_practices.mixins import FineTuningMixin, TrainingPractices
from lightning_practices.optim import Optimizer
from lightning_practices.plugins import FusedSyncBatchNorm
from lightning_practices.schedules import LearningRateSchedule

HALF, TRAIN = 5, 640  # classes before and after the transfer; images of the new ones to train on
BATCH_SIZE = 64  # of all processes together
SAVE_EVERY = 4  # steps


def make_backbone() -> nn.Sequential:
    """Return a ResNet of two blocks for images of 8 x 8 pixels, without its head."""
    down = nn.Sequential(nn.Conv2d(16, 32, 1, stride=2, bias=False), nn.BatchNorm2d(32))
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        BasicBlock(16, 16),
        BasicBlock(16, 32, stride=2, downsample=down),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


class Classifier(FineTuningMixin, TrainingPractices, LightningModule):
    """A pretrained backbone and a new head, trained with all practices.

    Args:
        pretrained: File with the weights of the backbone.
        **practices: See ``TrainingPractices``.
    """

    def __init__(self, pretrained: Path, **practices: Any) -> None:
        super().__init__(**practices)
        self.pretrained = pretrained
        self.backbone = make_backbone()
        self.head = nn.Linear(32, HALF)

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":  # a checkpoint that is resumed is loaded later
            self.backbone.load_state_dict(torch.load(self.pretrained, weights_only=True))

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    @override
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        logits = self.head(self.backbone(batch[0]))
        # sync_dist: the mean over all processes, not that of process 0
        self.log("val_loss", F.cross_entropy(logits, batch[1]), sync_dist=True)
        accuracy = (logits.argmax(1) == batch[1]).float().mean()
        self.log("val_accuracy", accuracy, sync_dist=True)

    @override
    def on_validation_end(self) -> None:
        super().on_validation_end()
        assert self.fine_tuning is not None
        place = f"epoch {self.trainer.current_epoch}, phase {self.fine_tuning.phase}"
        values = (f"{name} {float(v):.4f}" for name, v in self.trainer.callback_metrics.items())
        self.print(f"{place}:", ", ".join(values), flush=True)  # by process 0 alone


class Digits(LightningDataModule):
    """The digits 5 to 9, and a file with weights that were pretrained on 0 to 4.

    Args:
        pretrained: The file, which the first process of each node writes if it is missing.
    """

    def __init__(self, pretrained: Path) -> None:
        super().__init__()
        self.pretrained = pretrained

    @override
    def prepare_data(self) -> None:
        if not self.pretrained.exists():  # the other processes wait
            with replacing(self.pretrained) as part:
                torch.save(pretrain(*images_of(range(HALF))).state_dict(), part)

    def _loader(self, split: slice, shuffle: bool) -> DataLoader[Any]:
        processes = 1 if self.trainer is None else self.trainer.world_size
        if BATCH_SIZE % processes:
            raise ValueError(
                f"{processes} processes can't share batches of {BATCH_SIZE} images: use 1, 2, 4 or"
                " another divisor"
            )
        x, y = images_of(range(HALF, 2 * HALF))
        data = TensorDataset(x[split], y[split] - HALF)
        # The same order for any number of processes. Lightning's sampler is for several only.
        rank = 0 if self.trainer is None else self.trainer.global_rank
        sampler: Any = DistributedSampler(data, processes, rank, shuffle=shuffle, drop_last=True)
        return DataLoader(data, BATCH_SIZE // processes, sampler=sampler, drop_last=shuffle)

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(slice(TRAIN), shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(slice(TRAIN, None), shuffle=False)


def images_of(classes: range) -> tuple[Tensor, Tensor]:
    """Return the images and labels of some of scikit-learn's digits."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.get_default_dtype()).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    chosen = (y >= classes.start) & (y < classes.stop)
    return x[chosen], y[chosen]


def pretrain(x: Tensor, y: Tensor) -> nn.Sequential:
    """Return a backbone that was trained for three epochs."""
    torch.manual_seed(0)
    backbone, head = make_backbone(), nn.Linear(32, HALF)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(3):
        for batch in torch.split(torch.randperm(len(y)), BATCH_SIZE):
            optimizer.zero_grad()
            loss: Any = F.cross_entropy(head(backbone(x[batch])), y[batch])
            loss.backward()
            optimizer.step()
    return backbone


def hash_of(module: nn.Module) -> str:
    """Return a hash of all parameters and buffers, which a single bit changes."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def of_all_processes(value: str) -> list[str]:
    """Return the value of each process, in the order of their ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def started_processes() -> tuple[str, int]:
    """Return the number of processes of each node, and the number of nodes.

    Lightning doesn't ask torchrun or SLURM for these numbers, but checks that they agree.
    """
    if local := os.environ.get("LOCAL_WORLD_SIZE"):  # of torchrun
        return local, int(os.environ["WORLD_SIZE"]) // int(local)
    if local := os.environ.get("SLURM_NTASKS_PER_NODE"):
        return local, int(os.environ["SLURM_NNODES"])
    return "auto", 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=Path(__file__).name, description=__doc__.splitlines()[0] if __doc__ else None
    )
    devices, nodes = started_processes()
    add = parser.add_argument
    add("--devices", default=devices, help="processes of each node; 'auto': one for each GPU")
    add("--num-nodes", type=int, default=nodes, help="nodes")
    add("--max-epochs", type=int, default=12, help="epochs, if early stopping doesn't end the fit")
    add("--precision", default="32-true", help="Lightning's precision, such as bf16-mixed")
    add("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    add("--folder", type=Path, default=Path("runs/multi_gpu"), help="for weights and checkpoints")
    return parser.parse_args(arguments)


def make_trainer(given: argparse.Namespace, *callbacks: Callback) -> Trainer:
    """Return the Trainer, whose strategy is DDP if there are several processes."""
    save = ModelCheckpoint(
        given.folder, "{step}", every_n_train_steps=SAVE_EVERY, save_last=True, save_top_k=0
    )
    options: dict[str, Any] = {
        "devices": given.devices, "num_nodes": given.num_nodes, "precision": given.precision,
        "max_epochs": given.max_epochs, "default_root_dir": given.folder,
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "num_sanity_val_steps": 0, "use_distributed_sampler": False,
    }  # fmt: skip
    plugins: list[Any] = [FusedSyncBatchNorm()]
    if SLURMEnvironment.detect():
        # At SLURM's signal Lightning would save at once, wherever each process is in its step.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return Trainer(callbacks=[save, *callbacks], plugins=plugins, **options)


def main(arguments: list[str] | None = None, *callbacks: Callback) -> Classifier:
    """Fit, compare the weights of the processes, and return the trained module.

    Args:
        arguments: The command line. Default: that of the process.
        *callbacks: Further callbacks of the Trainer.

    Raises:
        SystemExit: If the processes have different weights.
    """
    given = parse(arguments)
    torch.set_num_threads(1)  # for a network this small, more threads only wait for each other
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data is in memory
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's, on torch 2.12 and later
    seed_everything(1, verbose=False)  # the same first weights in each process
    given.folder.mkdir(parents=True, exist_ok=True)
    pretrained = given.folder / "pretrained.pt"
    module = Classifier(
        pretrained,
        optimizer=Optimizer("adamw", lr=3e-3, weight_decay=0.05),
        schedule=LearningRateSchedule("cosine", warmup_steps=10),
        gradient_clipping=1.0,
        weight_averaging="ema",
        early_stopping=EarlyStopping("val_loss", patience=6),
        checkpoint=BestCheckpoint("val_loss", dirpath=given.folder / "best"),
    )
    trainer = make_trainer(given, *callbacks)
    last = given.folder / "last.ckpt"
    trainer.fit(
        module, Digits(pretrained), ckpt_path=last if given.resume and last.exists() else None
    )
    found = of_all_processes(hash_of(module))
    report(found, module, trainer)
    if len({*found}) > 1:
        sys.exit("the processes have different weights")
    return module


@rank_zero_only
def report(hashes: list[str], module: Classifier, trainer: Trainer) -> None:
    """Print how the fit has ended, and the hash of each process's weights."""
    assert module.early_stopping is not None
    best = module.early_stopping.best_step
    print(f"ended at step {trainer.global_step} with the weights of step {best}")
    for rank, each in enumerate(hashes):
        print(f"process {rank} of {len(hashes)}, {module.device}: weights {each}")


if __name__ == "__main__":
    main()
