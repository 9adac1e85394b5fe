"""The whole training step of two networks, before and after their layers are fused."""

from collections.abc import Callable

import torch
from lightning.pytorch import seed_everything
from torch import nn
from torchvision.models import resnet18

from lightning_practices.reproduce._table import Column, Table
from lightning_practices.surgery import fuse

WIDTH, HEADS, DEPTH = 256, 4, 4  # of the transformer
BEFORE, AFTER = "torch's layers", "fused"
TIME = "time (torch's: 1)"


def experiment(
    seed: int, network: str, fused: bool, batch_size: int = 32, size: int = 64
) -> dict[str, float]:
    """Time steps with torch's layers and with those that ``surgery.fuse`` has chosen, in turns.

    A step is the forward pass and the gradients of all parameters. The time is in units of the step
    with torch's layers, in the same run, so that it is 1 by definition without fused layers. It is
    1 too where no layer gains anything on this device: then ``fuse`` leaves the network as it was.

    ``fuse`` keeps layers whose step was faster, so the times it has chosen by are a little too
    good. A second call measures the chosen network anew, and its report is the result.

    Args:
        seed: Seed of the weights and of the batch.
        network: Name of the network.
        fused: Whether its layers are fused.
        batch_size: Images, or sequences.
        size: Edge of an image, or length of a sequence.
    """
    if not fused:
        return {TIME: 1.0, "layers": 0.0}
    seed_everything(seed, verbose=False)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    model, shape = NETWORKS[network]
    made = model().train().to(device)
    batch = torch.randn(batch_size, *shape(size), device=device)
    chosen = fuse(made, batch)
    names = {layer.names for layer in chosen.replaced} | {fold.names for fold in chosen.folded}
    again = fuse(made, batch) if names else chosen
    time = again.step.ratio if names and again.step is not None else 1.0
    return {TIME: time, "layers": float(len(names))}


def _transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.1, batch_first=True)
    return nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)


Shape = tuple[int, ...]
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Shape]]] = {
    "ResNet-18": (resnet18, lambda size: (3, size, size)),
    "transformer": (_transformer, lambda size: (size, WIDTH)),
}

TABLE = Table(
    name="fusing",
    title="Fused layers in a whole training step",
    source="S0, S1, S3 (batch norm, layer norm and dropout, without times)",
    claim="a fused layer reads and writes less memory, so a step on a GPU takes less time; on a "
    "CPU, where the kernels don't run, hardly a layer gains anything",
    experiment=experiment,
    rows={BEFORE: {"fused": False}, AFTER: {"fused": True}},
    columns={
        f"{name}, {label}": Column(
            metric, "", {"network": name}, digits=digits, more_is_better=metric == "layers"
        )
        for name in NETWORKS
        for label, metric, digits in (("step", TIME, 2), ("fused layers", "layers", 0))
    },
    reference=BEFORE,
    tiny={"batch_size": 2, "size": 32},
    alone=True,
)
