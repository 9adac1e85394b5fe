"""Text as bytes, and a causal transformer that predicts the next one."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_practices.mixins import TrainingPractices
from lightning_practices.recipes._errors import DataError

_BYTES = 256
_HELD_OUT = 20  # of so many parts of a text, one is for validation and one for the test


class TextData(LightningDataModule):
    """A text, cut into sequences of bytes without overlap.

    The first nine tenths are for training, then come validation and test. A batch holds a sequence
    ``(N, length + 1)`` of whole numbers: each byte but the last is an input, and the one after it
    the target.

    Args:
        file: A file of text in any encoding. Default: the topics of Python's ``help()``, half a
            megabyte of English about Python, which the standard library ships.
        length: Bytes that the network sees at most.
        batch_size: Sequences of a batch, in each process.

    Raises:
        DataError: If the file is missing, or too short for a sequence in each split.
    """

    def __init__(self, file: Path | None = None, length: int = 128, batch_size: int = 32) -> None:
        super().__init__()
        self.length, self.batch_size = length, batch_size
        text = _of_python() if file is None else _read(Path(file))
        sequences = (len(text) - 1) // length
        held_out = sequences // _HELD_OUT
        if held_out < 1:
            raise DataError(
                f"{file} has {len(text)} bytes: with length={length} at least"
                f" {length * _HELD_OUT + 1} are needed"
            )
        found = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
        whole = found[: sequences * length + 1].unfold(0, length + 1, length)
        sizes = [sequences - 2 * held_out, held_out, held_out]
        self._splits = [TensorDataset(part) for part in torch.split(whole, sizes)]

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._splits[0], self.batch_size, shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._splits[1], self.batch_size)

    @override
    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._splits[2], self.batch_size)


class CausalTransformer(TrainingPractices, LightningModule):
    r"""A transformer that predicts each byte of a text from those before it.

    The norms come before attention and the feed-forward layers, which trains without the care that
    norms after them need. It logs ``train_loss``, ``val_loss`` and ``test_loss``, in nats a byte:
    a uniform guess has :math:`\ln 256 = 5.55`.

    Under ``ModelParallelStrategy`` the parameters of each block are sharded over the processes, by
    FSDP2's ``fully_shard``: a process gathers those of one block when the block runs.

    Args:
        width: Size of the embedding of a byte.
        depth: Number of blocks.
        heads: Heads of the attention of each block.
        length: Bytes that the network sees at most; that of the data.
        dropout: The rate of dropout.
        **practices: See :class:`~lightning_practices.mixins.TrainingPractices`.
    """

    network: nn.Module

    def __init__(
        self,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        length: int = 128,
        dropout: float = 0.1,
        **practices: Any,
    ) -> None:
        super().__init__(**practices)
        self.save_hyperparameters()
        self.sizes = (width, depth, heads, length, dropout)

    @override
    def configure_model(self) -> None:
        if hasattr(self, "network"):  # Lightning calls this hook in each fit and test
            return
        self.network = _Network(*self.sizes)
        super().configure_model()  # which fuses layers, before they are sharded
        if self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            for block in self.network.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(self.network, mesh=mesh)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.network(tokens)
        return logits.view(*tokens.shape, _BYTES)

    def _loss(self, batch: list[Tensor]) -> Tensor:
        (tokens,) = batch
        logits = self(tokens[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    @override
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch), prog_bar=True, sync_dist=True)

    @override
    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_loss", self._loss(batch), sync_dist=True)


class _Network(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(_BYTES, width)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, _BYTES)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.tokens(tokens) + self.positions(torch.arange(length, device=tokens.device))
        x = self.dropout(x)
        mask = nn.Transformer.generate_square_subsequent_mask(length, tokens.device, x.dtype)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        # Of two dimensions, or it would be a view, in which FSDP2 may lose its hooks.
        logits: Tensor = self.head(self.norm(x).flatten(0, 1))
        return logits


def _of_python() -> bytes:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).encode()


def _read(file: Path) -> bytes:
    if not file.is_file():
        raise DataError(f"there is no file {file}: give a file of text")
    return file.read_bytes()
