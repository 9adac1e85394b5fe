"""Monitored values: whether anything logs them, and which way is better."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

from lightning_practices.advisor._fit import mentions
from lightning_practices.advisor._observation import Observation

_LOWER = {"loss", "losses", "mse", "rmse", "mae", "mape", "perplexity", "ppl", "wer", "cer", "nll",
          "error", "err", "fid", "brier", "ece", "bce", "crossentropy"}  # fmt: skip
_HIGHER = {"acc", "accuracy", "acc1", "acc5", "auc", "auroc", "auprc", "f1", "iou", "miou", "map",
           "precision", "recall", "bleu", "rouge", "psnr", "ssim", "kappa", "mcc", "r2",
           "f1score", "top1", "top5", "ndcg", "mrr", "dice", "jaccard"}  # fmt: skip
_TURNED = {"neg", "negative", "minus", "inverse", "inv", "one"}  # "neg_accuracy"
_REWARDS = {"reward", "rewards", "return", "returns"}
_EXCHANGED = {"precision", "recall", "kappa"}  # for another one; the last may be an option
# Scores that fall on purpose, or of what isn't the aim of the fit.
_OTHER_AIMS = {
    "adv", "adversarial", "attack", "attacked", "baseline", "bonus", "critic", "curiosity", "d",
    "difference", "disc", "discriminator", "domain", "drop", "exploration", "fake", "fooling",
    "forgetting", "gap", "intrinsic", "norm", "old", "previous", "prior", "random", "real",
    "shaped", "source", "std", "target", "teacher", "var",
}  # fmt: skip
# Methods whose texts name monitors, and don't log.
_NAMING = ("configure_optimizers", "configure_callbacks", "__init__")


def direction_of(name: str) -> str | None:
    """Return ``"min"`` or ``"max"``, as the name of a value says; ``None`` if it doesn't."""
    words = _words(name)
    if _TURNED & words:
        return None
    if _LOWER & words:
        return "min"
    return "max" if _HIGHER & words else None


def is_score(name: str) -> bool:
    """Return whether a value is a score or a reward that training raises, as its name says."""
    words = _words(name)
    if words & (_OTHER_AIMS | _TURNED | _LOWER | _EXCHANGED):
        return False
    return bool(words & (_REWARDS | _HIGHER))


def is_of_validation(name: str) -> bool:
    """Return whether a value is one of validation, as its name says."""
    return bool(_words(name) & {"val", "valid", "validation"})


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))


def is_missing(seen: Observation, name: str) -> bool:
    """Return whether surely nothing logs a value of this name.

    A step may log it later, if a method of the module holds the name or a callback of the user's
    logs values. Then it isn't missing.
    """
    if name in ("epoch", "step") or name in seen.observer.callback_metrics:
        return False  # a checkpoint may monitor the first two always
    if name.startswith("lr-"):  # of LearningRateMonitor
        return False
    if not name or f"{name}/dataloader_idx_0" in seen.observer.callback_metrics:
        return True  # Lightning adds the loader to names where there are several
    if seen.validation_step is None and not name.startswith("train"):
        return False  # the data that was given has no validation split
    if mentions(type(seen.module), name, apart_from=_NAMING):
        return False
    own = [type(one) for one in seen.callbacks if not _is_of_library(type(one))]
    return not any(mentions(kind, "log", "log_dict", "callback_metrics") for kind in own)


def logged(seen: Observation, name: str) -> str:
    """Return the logged names, the one that resembles ``name`` first, as text."""
    names = list(seen.observer.callback_metrics)
    near = get_close_matches(name, names, cutoff=0.5)
    return ", ".join(near or _shortest(names)) or "none"


def _shortest(names: Iterable[str]) -> list[str]:
    return sorted(names, key=len)[:5]


def _is_of_library(kind: type) -> bool:
    names = ("lightning.", "pytorch_lightning.", "lightning_practices.")
    return kind.__module__.startswith(names)
