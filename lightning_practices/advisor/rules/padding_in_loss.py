"""Padding that a loss counts."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_practices.advisor._kinds import PASSED
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._sequences import Tokens, ignored_by, tokens_of
from lightning_practices.advisor._trace import Call

_DECLARED = 0.05  # share of the positions, where the embedding says which token is padding
_SUPPOSED = 0.20  # where it doesn't
_LENGTHS = 3  # of the ends that are padding, at least
_ROWS = 0.25  # of the samples that are padded, at least
_TOKENS = 6  # fewer are the kinds of segments, or a mask
_MEANS = frozenset({"mean", "sum", "nanmean"})


@rule(
    "LP242", "warning",
    practice="A loss leaves out padding",
    measures="the share of the targets that a loss counts at positions whose token is padding: that"
    " of the embedding's padding_idx, or one that only ends sequences of different lengths",
    healthy="0; the threshold is 5 %",
    source="torch.nn.CrossEntropyLoss: ignore_index; questions on forums about a sequence model"
    " that predicts padding",
)  # fmt: skip
def padding_in_loss(seen: Observation) -> Iterator[Evidence]:
    found = set()
    for tokens in tokens_of(seen.step):
        padding = _padding(tokens)
        if padding is None or tokens.loss in found or _is_masked(seen.step, tokens.loss.call):
            continue
        found.add(tokens.loss)
        targets = tokens.targets[padding]
        target = int(targets[0])
        share = float(padding.float().mean())
        token = int(tokens.read[:, : padding.shape[1]][padding][0])
        yield Evidence(
            f"{tokens.loss.call} counts padding: {share:.0%} of its targets are at positions where"
            f" {tokens.call} reads token {token}, and all of these are {target}",
            f"cross_entropy(logits, targets, ignore_index={target})" if target == token
            else "targets of -100 at padded positions, which cross_entropy ignores",
            tuple(filter(None, [layer_of(tokens.loss.prediction)])),
            {"padding": share},
        )  # fmt: skip


def _padding(tokens: Tokens) -> Tensor | None:
    """Return the positions of padding that the loss counts, all of the same target."""
    declared = tokens.call.get(2, "padding_idx")
    if tokens.call.name != "embedding" or (declared is None and not _ends_alike(tokens.read)):
        return None
    padding = _ends(tokens.read, declared)[:, : tokens.targets.shape[1]]
    least = _SUPPOSED if declared is None else _DECLARED
    targets = tokens.targets[padding]
    if not targets.numel() or float(padding.float().mean()) < least:
        return None
    target = int(targets[0])
    if bool((targets != target).any()) or target == ignored_by(tokens.loss):
        return None
    weight = tokens.loss.call.get(2, "weight")
    weights = getattr(weight, "tensor", None)
    if weight is not None and (weights is None or float(weights[target]) == 0):
        return None
    return padding


def _ends(read: Tensor, token: int | None) -> Tensor:
    """Return the positions in runs of a token at the ends, or the starts, of sequences.

    Args:
        read: Tokens of shape (samples, positions).
        token: The token; ``None`` for that which most sequences end with, at the ends alone.
    """
    if token is None:
        return _run(read == _last(read))
    is_token = read == token
    return _run(is_token) | _run(is_token.flip(1)).flip(1)


def _run(mask: Tensor) -> Tensor:
    """Return the part of a mask that lasts to the end of each row."""
    return mask.flip(1).long().cumprod(dim=1).bool().flip(1)


def _last(read: Tensor) -> int:
    return int(torch.mode(read[:, -1]).values)


def _ends_alike(read: Tensor) -> bool:
    """Return whether a token ends many sequences, by runs of different lengths, and is only there.

    This is what padding looks like where no embedding says which token it is.
    """
    token = _last(read)
    runs = _run(read == token)
    lengths = runs.sum(dim=1)
    padded = lengths > 0
    inside = (read == token) & ~runs
    return (
        not bool(inside.any())
        and len(set(read.flatten().tolist())) >= _TOKENS
        and float(padded.float().mean()) >= _ROWS
        and len(set(lengths[padded].tolist())) >= _LENGTHS
        and not bool((lengths == read.shape[1]).any())
    )


def _is_masked(step: Step, call: Call) -> bool:
    """Return whether a loss of each position is multiplied or selected before it is averaged."""
    if call.get(6, "reduction", "mean") != "none":
        return False
    waiting = [call.output]
    while waiting:
        for user in step.users(waiting.pop()):
            if user.name in _MEANS:
                return False
            if user.name not in PASSED - {"__getitem__", "masked_select", "index_select", "gather"}:
                return True
            waiting += user.outputs
    return True
