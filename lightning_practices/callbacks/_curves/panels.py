"""Which curves share a panel, by their names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["loss", "metric", "rate", "norm"]

_KINDS: tuple[Kind, ...] = ("loss", "metric", "rate", "norm")  # from the first panel to the last
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "eval": "val",
    "test": "test",
}
_LOADER = "/dataloader_idx_"  # what Lightning appends to names where there are several


@dataclass(frozen=True)
class Curve:
    """A name, read.

    Attributes:
        name: As logged.
        split: Of the data: ``"train"``, ``"val"``, ``"test"``, or empty if the name doesn't say.
        quantity: The rest of the name.
        loader: Which of several dataloaders, or empty.
        fork: ``"step"`` or ``"epoch"`` for the two that Lightning makes of a value, or empty.
        kind: What it is.
    """

    name: str
    split: str
    quantity: str
    loader: str
    fork: str
    kind: Kind


@dataclass
class Panel:
    """Curves drawn over each other."""

    title: str
    kind: Kind
    curves: list[Curve] = field(default_factory=list)


def read(name: str) -> Curve:
    """Read a name such as ``val_loss``, ``train/acc_epoch`` or ``lr-Adam/head``."""
    stem, _, loader = name.partition(_LOADER)
    fork = next((fork for fork in ("step", "epoch") if stem.endswith(f"_{fork}")), "")
    words = re.split(r"[/_.\s-]+", stem.removesuffix(f"_{fork}"))
    split = ""
    for end in (0, -1):
        if len(words) > 1 and words[end].lower() in _SPLITS:
            split = _SPLITS[words.pop(end).lower()]
            break
    quantity = "_".join(words)
    return Curve(name, split, quantity, loader, fork, _kind(name, quantity.lower()))


def panels(names: Iterable[str]) -> list[Panel]:
    """Return the panels: losses, metrics, one for all rates and one for all norms.

    Of losses and of metrics those of a split come before others.
    """
    found: dict[tuple[Kind, str], Panel] = {}
    for name in names:
        curve = read(name)
        title = {"rate": "learning rate", "norm": "gradient norm"}.get(curve.kind, curve.quantity)
        panel = found.setdefault((curve.kind, title.lower()), Panel(title, curve.kind))
        panel.curves.append(curve)
    return sorted(
        found.values(),
        key=lambda panel: (_KINDS.index(panel.kind), not any(each.split for each in panel.curves)),
    )


def forks(name: str) -> tuple[str, str]:
    """Return how Lightning names the two of a value that is logged by step and by epoch."""
    stem, mark, loader = name.partition(_LOADER)
    return f"{stem}_step{mark}{loader}", f"{stem}_epoch{mark}{loader}"


def _kind(name: str, quantity: str) -> Kind:
    words = quantity.split("_")
    if name.startswith("lr-") or words[-1] == "lr" or quantity.endswith("learning_rate"):
        return "rate"
    if "norm" in words or quantity.startswith("grad_clip_threshold"):
        return "norm"
    return "loss" if "loss" in quantity else "metric"
