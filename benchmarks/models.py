"""The models that ``fit`` trains, their data and their training."""

import contextlib
import dataclasses
import logging
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from typing_extensions import override

from benchmarks.timers import threads
from lightning_kernels import CompiledNorms
from lightning_practices.callbacks import EarlyStopping
from lightning_practices.mixins import FusedLayersMixin

Batch = tuple[Tensor, Tensor]
_BATCHES = 4  # different batches, used in turn
_DROP_RATE = 0.1
_NEVER = 10**9


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model with its data and training settings.

    Attributes:
        name: Name of the model in the rows.
        make: Function that builds the network with random weights.
        batch_size: Number of samples in a batch.
        sample: Shape of an image, or of a sequence of tokens.
        classes: Number of classes, or of different tokens.
        unit: Kind of a sample.
        precision: Precision of the Trainer.
        channels_last: Whether images and weights are channels last.
    """

    name: str
    make: Callable[[], nn.Module]
    batch_size: int
    sample: tuple[int, ...]
    classes: int
    unit: Literal["images", "sequences"] = "images"
    precision: Literal["bf16-mixed", "32-true"] = "bf16-mixed"
    channels_last: bool = False

    def make_network(self) -> nn.Module:
        """Build the network, with the same weights each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = self.make()
        return network.to(memory_format=torch.channels_last) if self.channels_last else network

    def make_batches(self, device: torch.device) -> list[Batch]:
        """Draw random batches on ``device``: with zeros a GPU is faster than with real data."""
        generator = torch.Generator(device).manual_seed(0)
        shape = (self.batch_size, *self.sample)
        batches = []
        for _ in range(_BATCHES):
            options: dict[str, Any] = {"device": device, "generator": generator}
            if self.unit == "images":
                x = torch.randn(shape, **options)
                y = torch.randint(self.classes, shape[:1], **options)
                x = x.to(memory_format=torch.channels_last) if self.channels_last else x
            else:
                x, y = (torch.randint(self.classes, shape, **options) for _ in range(2))
            batches.append((x, y))
        return batches


class CausalTransformer(nn.Module):
    """A language model of embeddings, masked pre-norm blocks and a linear head."""

    mask: Tensor

    def __init__(self, depth: int, width: int, heads: int, length: int, tokens: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, _DROP_RATE, "gelu", batch_first=True, norm_first=True
        )
        block.self_attn.dropout = 0.0  # surgery does not replace dropout inside attention
        self.blocks = nn.TransformerEncoder(
            block, depth, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        self.register_buffer("mask", mask, persistent=False)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position
        logits: Tensor = self.head(self.blocks(x, self.mask, is_causal=True))
        return logits


def _gpt() -> nn.Module:
    return CausalTransformer(depth=12, width=768, heads=12, length=1024, tokens=16384)


def _small_gpt() -> nn.Module:
    return CausalTransformer(depth=2, width=64, heads=2, length=32, tokens=64)


class Llama(nn.Module):
    """transformers' Llama with random weights, whose output is the logits alone."""

    def __init__(self, depth: int, width: int, heads: int, length: int, tokens: int) -> None:
        super().__init__()
        import transformers

        config = transformers.LlamaConfig(
            num_hidden_layers=depth, hidden_size=width, intermediate_size=8 * width // 3,
            num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=length,
            vocab_size=tokens, use_cache=False,
        )  # fmt: skip
        self.model = transformers.LlamaForCausalLM(config)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens).logits
        return logits


def _llama() -> nn.Module:
    return Llama(depth=12, width=768, heads=12, length=1024, tokens=16384)


def _small_efficientnet() -> nn.Module:
    return _efficientnet("test_efficientnet", 10)


def _small_llama() -> nn.Module:
    return Llama(depth=2, width=48, heads=2, length=32, tokens=64)


def _efficientnet(name: str = "efficientnet_b0", classes: int = 1000) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(
        name, num_classes=classes, drop_rate=0.2, drop_path_rate=0.2
    )
    return network


def _small_vit() -> nn.Module:
    network: nn.Module = models.VisionTransformer(
        32, 8, 2, 2, 64, 128, dropout=_DROP_RATE, num_classes=10
    )
    return network


def _small_convnext() -> nn.Module:
    blocks = [CNBlockConfig(32, 64, 1), CNBlockConfig(64, None, 1)]
    network: nn.Module = models.ConvNeXt(blocks, num_classes=10)
    return network


_SMALL: dict[str, Any] = {"batch_size": 8, "precision": "32-true"}
_IMAGE: dict[str, Any] = {"sample": (3, 224, 224), "classes": 1000}
_SMALL_IMAGE: dict[str, Any] = {"sample": (3, 32, 32), "classes": 10, **_SMALL}

# The workloads by their names in --models. Dropout is on if the recipe of the model has it. The
# last two need timm and transformers.
ON_GPU = {
    "resnet": Workload("resnet50", models.resnet50, 256, channels_last=True, **_IMAGE),
    "vit": Workload("vit_b_16", lambda: models.vit_b_16(dropout=_DROP_RATE), 256, **_IMAGE),
    "convnext": Workload("convnext_tiny", models.convnext_tiny, 128, channels_last=True, **_IMAGE),
    "transformer": Workload("transformer", _gpt, 32, (1024,), 16384, "sequences"),
    "efficientnet": Workload(
        "timm efficientnet_b0", _efficientnet, 256, channels_last=True, **_IMAGE
    ),
    "llama": Workload("transformers llama", _llama, 32, (1024,), 16384, "sequences"),
}
ON_CPU = {
    "resnet": Workload(
        "resnet18 32px", lambda: models.resnet18(num_classes=10), channels_last=True, **_SMALL_IMAGE
    ),
    "vit": Workload("small vit 32px", _small_vit, **_SMALL_IMAGE),
    "convnext": Workload("small convnext 32px", _small_convnext, **_SMALL_IMAGE),
    "transformer": Workload(
        "small transformer", _small_gpt, sample=(32,), classes=64, unit="sequences", **_SMALL
    ),
    "efficientnet": Workload(
        "small efficientnet 32px", _small_efficientnet, channels_last=True, **_SMALL_IMAGE
    ),
    "llama": Workload(
        "small llama", _small_llama, sample=(32,), classes=64, unit="sequences", **_SMALL
    ),
}


class Training(LightningModule):
    """Trains a network to classify, and nothing more. It logs ``loss`` once per epoch."""

    def __init__(self, network: nn.Module, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network: Any = network
        self._loss = torch.zeros(())

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.network(x).flatten(0, -2), y.flatten())

    @override
    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self._loss = outputs["loss"]

    @override
    def on_train_epoch_end(self) -> None:
        self.log("loss", self._loss)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)


class Fused(FusedLayersMixin, Training):
    """The same training with fused layers."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to train a model.

    Attributes:
        module: Class of the module to train.
        callbacks: Function that makes the callbacks.
        compiled: Whether the module runs under ``torch.compile``.
        compiled_norms: Argument of :func:`lightning_kernels.set_compiled_norms`.
    """

    module: type[Training] = Training
    callbacks: Callable[[], list[Callback]] = list
    compiled: bool = False
    compiled_norms: CompiledNorms = "kernels"


def _practices() -> list[Callback]:
    return [EarlyStopping("loss", patience=_NEVER, check_on_train_epoch_end=True)]


VARIANTS = {
    "plain": Variant(),
    "ours": Variant(Fused, _practices),
    "plain compiled": Variant(compiled=True),
    "ours compiled": Variant(Fused, _practices, compiled=True),
    "ours compiled, norms left": Variant(
        Fused, _practices, compiled=True, compiled_norms="inductor"
    ),
}


def train(
    module: nn.Module,
    batches: Sequence[Any],
    device: torch.device,
    callbacks: Sequence[Callback],
    *,
    steps: int,
    epochs: int = 1,
    precision: Literal["bf16-mixed", "32-true"] = "32-true",
) -> Trainer:
    """Fit ``module``, compiled or not, for ``epochs`` of ``steps`` batches that are in memory.

    On the CPU the fit uses one thread.

    Raises:
        KeyboardInterrupt: If interrupted, or terminated by SIGTERM. Lightning itself would exit,
            after SIGTERM even with status 0, and ignore a second interrupt.
    """
    data: Any = [batches[step % len(batches)] for step in range(steps)]
    handler = signal.getsignal(signal.SIGINT)
    # On a busy machine several threads would wait for the slowest.
    with quiet(), threads(1) if device.type == "cpu" else contextlib.nullcontext():
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision=precision,
            max_epochs=epochs,
            callbacks=list(callbacks),
            benchmark=True,  # let cuDNN choose its algorithms once, since the sizes never change
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(module, DataLoader(data, batch_size=None))  # type: ignore[arg-type]
        except SystemExit:
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None
    return trainer


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's advice, which each fit would repeat."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # The data need no workers, and an epoch has few steps.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # from Lightning on torch 2.12 and later
        warnings.filterwarnings("ignore", "GPU available but not used.*")
        try:
            yield
        finally:
            logger.setLevel(level)
