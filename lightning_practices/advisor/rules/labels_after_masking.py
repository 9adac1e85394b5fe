"""Labels of a masked language model that are taken after the masking."""

from collections.abc import Iterator

from torch import Tensor

from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import classes_of, layer_of, losses_seen
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._sequences import ignored_by, tokens_in, tokens_of
from lightning_practices.advisor._trace import CLASSES, Loss

_FEWEST = 8  # targets
_OTHERS = 4  # tokens at other positions
_MOST = 0.5  # share of the positions that are masked, and of other targets that are unusual
_USUAL = 0.5  # share of the masked positions that hold the token of the mask


@rule(
    "LP292", "error",
    practice="Labels of masked tokens are the tokens before the masking",
    measures="targets that all are one token, which the network reads exactly as often and which is"
    " at few positions; or that equal what is read at the positions which count, mostly by one"
    " token that is nowhere else",
    healthy="targets that differ from the token of the mask",
    source="Devlin et al., 2019, arXiv:1810.04805: the original token is predicted; issues of"
    " projects that mask in place without a clone",
)  # fmt: skip
def labels_after_masking(seen: Observation) -> Iterator[Evidence]:
    for step, loss in losses_seen(seen, CLASSES):
        target = loss.target.tensor
        if target is None or target.is_floating_point():
            continue
        token = _only_target(step, loss, target)
        token = _usual_target(step, loss) if token is None else token
        if token is not None:
            yield Evidence(
                f"the targets of {loss.call} are what the network reads at these positions"
                f" after the masking, token {token}, which is nowhere else: the network learns to"
                " repeat the mask",
                "labels = tokens.clone() before tokens are masked in place",
                tuple(filter(None, [layer_of(loss.prediction)])),
            )


def _only_target(step: Step, loss: Loss, target: Tensor) -> int | None:
    """Return the token that all targets are, and that is read as often as there are targets."""
    kept = target[target != ignored_by(loss)]
    if len(kept) < _FEWEST or not bool((kept == kept[0]).all()):
        return None
    for _, value in step.first_layers:
        read = tokens_in(value.tensor)
        if read is None or int((read == kept[0]).sum()) != len(kept):
            continue
        others = set(read[read != kept[0]].tolist())
        is_vocabulary = len(others) >= _OTHERS and classes_of(loss.prediction) > max(others)
        if is_vocabulary and len(kept) < _MOST * read.numel():
            return int(kept[0])
    return None


def _usual_target(step: Step, loss: Loss) -> int | None:
    """Return the token of most targets, where these are what is read at a part of the positions."""
    for tokens in tokens_of(step):
        kept = tokens.kept
        if tokens.loss is not loss or int(kept.sum()) < _FEWEST or not tokens.are_same:
            continue
        read = tokens.read[:, : kept.shape[1]]
        inside, outside = read[kept].tolist(), set(read[~kept].tolist())
        usual = int(read[kept].mode().values)
        # Sorts of tokens that a loss leaves out, such as padding, are not among those that count.
        rest = [token for token in inside if token != usual]
        is_any_token = sum(token in outside for token in rest) > _MOST * len(rest)
        is_mask = usual not in outside and len(rest) <= _USUAL * len(inside)
        is_part = len(outside) >= _OTHERS and len(inside) < _MOST * read.numel()
        if is_any_token and is_mask and is_part:
            return usual
    return None
