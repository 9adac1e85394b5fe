"""What the name of a logged value says of it."""

import re

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
