"""A warning of a monitored value whose name contradicts the mode."""

import re
from collections.abc import Collection, Sequence

from lightning.pytorch.utilities import rank_zero_warn

Watched = tuple[str, str]
"""The name of a monitored value, and its mode."""

_RISING = {
    "acc", "accuracy", "auc", "aupr", "auprc", "auroc", "bleu", "dice", "f1", "iou", "jaccard",
    "kappa", "map", "miou", "ndcg", "precision", "psnr", "r2", "recall", "rouge", "sensitivity",
    "specificity", "ssim",
}  # fmt: skip
_FALLING = {
    "cer", "err", "error", "loss", "mae", "mape", "mse", "nll", "perplexity", "ppl", "rmse", "wer",
}  # fmt: skip
# Words of values that derive from another one, and may improve in the other direction.
_DERIVED = {
    "adv", "adversarial", "change", "critic", "decrease", "delta", "diff", "difference",
    "discriminator", "drop", "epochs", "fooling", "gain", "gap", "improvement", "increase",
    "inv", "inverse", "inverted", "minus", "neg", "negated", "negative", "one", "reduction",
    "spread", "std", "steps", "time", "to", "until", "var", "variance",
}  # fmt: skip


def warn_of_modes(watched: Sequence[Watched], warned: Collection[Watched]) -> None:
    """Warn of each monitored value whose name says that it improves in the other direction.

    Args:
        watched: What a callback monitors.
        warned: What callbacks monitor that have warned already.
    """
    for name, mode in watched:
        expected = _mode_of(name)
        if expected in (None, mode) or (name, mode) in warned:
            continue
        better = {"min": "lower", "max": "higher"}
        rank_zero_warn(
            f"monitor={name!r} has mode={mode!r}, so {better[mode]} values count as better, and by"
            f" its name {better[expected or mode]} values are: give mode={expected!r}, or monitor a"
            " value with another name if this is meant"
        )


def _mode_of(name: str) -> str | None:
    """Return the direction in which a value of this name improves; ``None`` if it isn't clear."""
    words = [word for part in re.split(r"[^A-Za-z0-9]+", name) for word in _words(part)]
    if not _DERIVED.isdisjoint(words):
        return None
    kinds = ["max" if word in _RISING else "min" for word in words if word in _RISING | _FALLING]
    if len({*kinds}) > 1:  # the loss of an accuracy is a loss; what an accuracy of losses is?
        return "min" if kinds[-1] == "min" else None
    return kinds[0] if kinds else None


def _words(part: str) -> list[str]:
    """Return the words of a part of a name: ``"F1Score"`` is ``f1`` and ``score``."""
    whole = part.lower()
    if whole in _RISING | _FALLING:  # mIoU
        return [whole]
    found = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+", part)
    words = [word.lower() for word in found]
    return [word if word in _RISING else word.rstrip("0123456789") for word in words]
