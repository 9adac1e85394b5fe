"""What the name of a logged value says of it."""

import re

_LOWER = {"loss", "losses", "mse", "rmse", "mae", "mape", "perplexity", "ppl", "wer", "cer", "nll",
          "error", "err", "fid", "brier", "ece", "bce", "crossentropy"}  # fmt: skip
_HIGHER = {"acc", "accuracy", "acc1", "acc5", "auc", "auroc", "auprc", "f1", "iou", "miou",
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


# What may stand beside "map", which is also a picture, a table of features and an image's part.
_BESIDE_MAP = {"val", "valid", "validation", "train", "training", "test", "epoch", "step", "metric",
               "metrics", "coco", "bbox", "box", "boxes", "segm", "small", "medium",
               "large"}  # fmt: skip
# Properties of what a name says, of which none is better for being higher.
_PROPERTIES = {"count", "density", "distance", "entropy", "grad", "gradient", "kl", "length",
               "penalty", "size", "sparseness", "sparsity", "temperature", "time",
               "uncertainty", "variance", "weight"}  # fmt: skip


def direction_of(name: str) -> str | None:
    """Return ``"min"`` or ``"max"``, as the name of a value says; ``None`` if it doesn't."""
    words = _words(name)
    if _TURNED & words:
        return None
    if _LOWER & words:
        return "min"
    return "max" if _names_score(name) else None


def is_score(name: str) -> bool:
    """Return whether a value is a score or a reward that training raises, as its name says."""
    words = _words(name)
    if words & (_OTHER_AIMS | _TURNED | _LOWER | _EXCHANGED):
        return False
    return _names_score(name) or bool(words & _REWARDS and not words & _PROPERTIES)


def is_of_validation(name: str) -> bool:
    """Return whether a value is one of validation, as its name says."""
    return bool(_words(name) & {"val", "valid", "validation"})


def _names_score(name: str) -> bool:
    words = _words(name)
    return not words & _PROPERTIES and (bool(words & _HIGHER) or _is_mean_precision(name, words))


def _is_mean_precision(name: str, words: set[str]) -> bool:
    """Return whether a name is that of a mean average precision, and of no other map."""
    if re.search(r"(?<![A-Za-z])mAP(?![A-Za-z])", name):
        return True
    rest = {re.sub(r"\d+$", "", word) for word in words} - {""}  # "map50", "map_50_95"
    return "map" in rest and rest <= _BESIDE_MAP | {"map"}


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
