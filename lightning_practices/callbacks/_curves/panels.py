"""Groups curves into panels, by their names."""

import re
from collections.abc import Iterable, Sequence
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
_LOADER = "/dataloader_idx_"  # Lightning appends this and an index for several loaders


@dataclass(frozen=True)
class Curve:
    """A curve, with the parts of its name; a part that the name lacks is empty.

    Attributes:
        name: The name under which the value is logged.
        split: The split of the data: ``"train"``, ``"val"`` or ``"test"``.
        quantity: The name without the other parts.
        loader: The index of the dataloader, if there are several.
        fork: ``"step"`` or ``"epoch"``, if Lightning logs the value by both.
        kind: The kind of quantity.
    """

    name: str
    split: str
    quantity: str
    loader: str
    fork: str
    kind: Kind


@dataclass
class Panel:
    """Curves that are drawn over each other."""

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
    """Return the panels: one for each loss and metric, one for all rates, one for all norms.

    Among losses, and among metrics, panels with a split (train, val or test) come first.
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


def chosen(
    found: Sequence[Panel], monitored: str | None, most: int
) -> tuple[list[Panel], list[Panel]]:
    """Return at most ``most`` panels in their order, and those left out.

    The panel of the monitored value comes first, then the losses, the rates, the norms, and the
    metrics with a split (train, val or test); other metrics are left out first.
    """

    def rank(panel: Panel) -> int:
        if any(curve.name == monitored for curve in panel.curves):
            return 0
        if panel.kind != "metric":
            return 1 + ("loss", "rate", "norm").index(panel.kind)
        return 4 if any(curve.split for curve in panel.curves) else 5

    kept = sorted(range(len(found)), key=lambda i: rank(found[i]))[:most]
    left = [panel for i, panel in enumerate(found) if i not in kept]
    return [found[i] for i in sorted(kept)], left


def forks(name: str) -> tuple[str, str]:
    """Return the two names of a value that Lightning logs by step and by epoch."""
    stem, mark, loader = name.partition(_LOADER)
    return f"{stem}_step{mark}{loader}", f"{stem}_epoch{mark}{loader}"


def _kind(name: str, quantity: str) -> Kind:
    words = quantity.split("_")
    if name.startswith("lr-") or words[-1] == "lr" or quantity.endswith("learning_rate"):
        return "rate"
    if "norm" in words or quantity.startswith("grad_clip_threshold"):
        return "norm"
    return "loss" if "loss" in quantity else "metric"
