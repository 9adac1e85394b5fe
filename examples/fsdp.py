"""Train a transformer whose weights are sharded over all processes (FSDP2), and check the result.

    python examples/fsdp.py --devices 2             # Lightning starts the second process
    torchrun --nproc-per-node 2 examples/fsdp.py    # torchrun starts both

Processes on GPUs talk through NCCL, those on CPUs through gloo. A small transformer reads
scikit-learn's digits row by row. Each process holds a share of each weight, of its gradient and of
its optimizer state. Gradients are clipped by their whole norm, the learning rate warms up and falls
along a cosine, and norms and biases are not decayed.

``--resume`` goes on from the last checkpoint, which is one file with whole tensors, so the number
of processes may change. At the end process 0 starts the same fit in one process, with the batches
of all processes joined, and the exit status is 1 if any weight differs by more than ``--tolerance``
times the largest one of its tensor. In float64, the default, that is one part in a billion.
"""

import argparse
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from typing_extensions import override

from lightning_practices.files import replacing
from lightning_practices.mixins import TrainingPractices
from lightning_practices.nn import LayerNorm, TransformerEncoderLayer
from lightning_practices.optim import Optimizer
from lightning_practices.schedules import LearningRateSchedule

ROWS, WIDTH, CLASSES = 8, 32, 10
TRAIN, BATCH_SIZE = 1536, 64  # images; those of a batch of all processes together
SAVE_EVERY = 10  # steps


class Transformer(TrainingPractices, LightningModule):
    """A transformer that reads an image row by row.

    Args:
        **practices: See ``TrainingPractices``.
    """

    def __init__(self, **practices: Any) -> None:
        super().__init__(**practices)
        self.rows = nn.Linear(ROWS, WIDTH)
        self.positions = nn.Parameter(torch.randn(ROWS, WIDTH) / 10)
        self.layers = nn.Sequential(*(
            # Without dropout, whose masks each process would draw for its own share of the batch.
            TransformerEncoderLayer(
                WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(2)
        ))  # fmt: skip
        self.norm = LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    @override
    def configure_model(self) -> None:
        super().configure_model()
        # There is no mesh with one process. The Trainer calls this in each run, validation too.
        if self.device_mesh is not None and not isinstance(self, FSDPModule):
            for part in (*self.layers, self):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    @override
    def forward(self, images: Tensor) -> Tensor:
        hidden = self.layers(self.rows(images) + self.positions)
        logits: Tensor = self.head(self.norm(hidden).mean(1))
        return logits

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    @override
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]), sync_dist=True)
        accuracy = (logits.argmax(1) == batch[1]).float().mean()
        self.log("val_accuracy", accuracy, sync_dist=True)

    @override
    def on_validation_end(self) -> None:
        super().on_validation_end()
        values = (f"{name} {float(v):.4f}" for name, v in self.trainer.callback_metrics.items())
        self.print(f"epoch {self.trainer.current_epoch}:", ", ".join(values), flush=True)


def loaders(rank: int, processes: int) -> list[DataLoader[Any]]:
    """Return the training and the validation data of a process, in the order of any number of them.

    Raises:
        ValueError: If the processes can't share a batch evenly.
    """
    if BATCH_SIZE % processes:
        raise ValueError(
            f"{processes} processes can't share batches of {BATCH_SIZE} images: use 2, 4 or another"
            " divisor"
        )
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.get_default_dtype()).reshape(-1, ROWS, 8) / 16
    y, size = torch.tensor(labels), BATCH_SIZE // processes
    train, val = (TensorDataset(x[part], y[part]) for part in (slice(TRAIN), slice(TRAIN, None)))
    order: Any = DistributedSampler(train, processes, rank, seed=1, drop_last=True)
    in_turn: Any = DistributedSampler(val, processes, rank, shuffle=False, drop_last=True)
    return [DataLoader(train, size, sampler=order), DataLoader(val, size, sampler=in_turn)]


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights by name, gathered from all processes. Each process has to call this."""
    state = module.state_dict()
    return {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in state.items()}


def largest_difference(weights: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """Return the largest difference of two weights, as a share of the largest in the tensor."""
    pairs = ((value.cpu(), others[name].cpu()) for name, value in weights.items())
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def weights_of_one_process(given: argparse.Namespace) -> dict[str, Tensor]:
    """Run this script in one process, and return its weights."""
    folder = given.folder / "one_process"
    command = [sys.executable, __file__, "--devices", 1, "--folder", folder]
    command += ["--max-epochs", given.max_epochs, "--dtype", given.dtype]
    launchers = ("RANK", "LOCAL_", "GROUP_", "ROLE_", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_")
    alone = {k: v for k, v in os.environ.items() if not k.startswith((*launchers, "NODE_RANK"))}
    subprocess.run([*map(str, command)], env=alone, check=True, stdout=subprocess.DEVNULL)
    weights: dict[str, Tensor] = torch.load(folder / "weights.pt", weights_only=True)
    return weights


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=Path(__file__).name, description=__doc__.splitlines()[0] if __doc__ else None
    )
    # torchrun says how many processes it has started.
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", torch.cuda.device_count() or 1))
    add = parser.add_argument
    add("--devices", type=int, default=devices, help="processes; default: one for each GPU")
    add("--max-epochs", type=int, default=5, help="epochs")
    add("--dtype", choices=("float64", "float32"), default="float64", help="of the weights")
    add("--tolerance", type=float, default=1e-9, help="largest difference from one process")
    add("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    add("--folder", type=Path, default=Path("runs/fsdp"), help="for weights and checkpoints")
    return parser.parse_args(arguments)


def make_trainer(given: argparse.Namespace, *callbacks: Callback) -> Trainer:
    """Return the Trainer, which shards the weights if there are several processes."""
    strategy = ModelParallelStrategy(
        data_parallel_size=given.devices, tensor_parallel_size=1, save_distributed_checkpoint=False
    )
    save = ModelCheckpoint(
        given.folder, "{step}", every_n_train_steps=SAVE_EVERY, save_last=True, save_top_k=0
    )
    return Trainer(
        strategy=strategy if given.devices > 1 else "auto", devices=given.devices,
        max_epochs=given.max_epochs, callbacks=[save, *callbacks],
        default_root_dir=given.folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
    )  # fmt: skip


def main(arguments: list[str] | None = None, *callbacks: Callback) -> dict[str, Tensor]:
    """Fit, compare the weights with those of one process, and return them.

    Args:
        arguments: The command line. Default: that of the process.
        *callbacks: Further callbacks of the Trainer.

    Raises:
        SystemExit: If the weights differ.
    """
    given = parse(arguments)
    torch.set_num_threads(1)  # for a network this small, more threads only wait for each other
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data is in memory
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's, on torch 2.12 and later
    # Lightning's precision="64-true" isn't for this strategy.
    torch.set_default_dtype(getattr(torch, given.dtype))
    seed_everything(1, verbose=False)  # the same first weights in each process
    given.folder.mkdir(parents=True, exist_ok=True)
    module = Transformer(
        optimizer=Optimizer("adamw", lr=3e-3, weight_decay=0.05),
        schedule=LearningRateSchedule("cosine", warmup_steps=10),
        gradient_clipping=1.0,
        early_stopping=None,
        checkpoint=None,
        fuse_layers=None,  # the layers are fused already
    )
    trainer = make_trainer(given, *callbacks)
    last = given.folder / "last.ckpt"
    train, val = loaders(trainer.global_rank, trainer.world_size)
    trainer.fit(module, train, val, ckpt_path=last if given.resume and last.exists() else None)
    weights = whole_weights(module)
    if trainer.is_global_zero:
        with replacing(given.folder / "weights.pt") as part:
            torch.save(weights, part)
    if trainer.world_size > 1:
        compare(weights, given, trainer)
    return weights


def compare(weights: dict[str, Tensor], given: argparse.Namespace, trainer: Trainer) -> None:
    """Compare with a fit in one process, which process 0 starts; the others wait for the result."""
    difference = 0.0
    if trainer.is_global_zero:
        difference = largest_difference(weights, weights_of_one_process(given))
        print(f"{trainer.world_size} processes differ from one by {difference:.1e} at most")
    if trainer.strategy.broadcast(difference) > given.tolerance:
        sys.exit(f"the weights differ by more than {given.tolerance:g}")


if __name__ == "__main__":
    main()
