"""Targets of a language model that are shifted twice."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._sequences import Changes, Tokens, tokens_of

_EQUAL = 0.99  # share of targets
_OFFSETS = (0, 1, 3)  # of other losses, where a model predicts several tokens ahead


@rule(
    "LP291", "error",
    practice="Targets of a language model are shifted once",
    measures="targets that equal the tokens two positions later, of a model whose predictions"
    " change with the token at their position, and with no later one",
    healthy="targets one position later; further heads for later tokens beside them",
    source="issues of projects in which the dataset shifts the labels, and the model's loss again",
)  # fmt: skip
def shifted_twice(seen: Observation) -> Iterator[Evidence]:
    if not seen.module.automatic_optimization or seen.failure is not None:
        return
    every = list(tokens_of(seen.step))
    found = [one for one in every if one.are_after_next]
    if len({id(one.call) for one in found}) != 1 or len({id(one.loss) for one in found}) != 1:
        return
    if any(one.share(offset) > _EQUAL for one in every for offset in _OFFSETS):
        return
    kept = found[0].kept
    # Where kinds of tokens take turns, the next one of the same kind is two positions later.
    takes_turns = not bool((kept[:, 1:] & kept[:, :-1]).any())
    if takes_turns or _is_head_of_frozen_network(seen, found[0]):
        return
    changes = Changes(seen, lambda one: one.are_after_next)
    tokens, changed = changes.tokens, changes.of_one_token()
    if tokens is None or changed is None:
        return
    place, columns = changed
    if columns[place] and not columns[:place].any():
        yield Evidence(
            f"the targets of {tokens.loss.call} are the tokens after the next: at each position the"
            " model sees the token there and no later one, so that it learns to leave one out",
            "one shift, in the dataset or in the step: cross_entropy(logits.flatten(0, 1),"
            " labels.flatten()) where labels are tokens[1:] already",
            tuple(filter(None, [layer_of(tokens.loss.prediction)])),
            {"two_later": tokens.share(2), "one_later": tokens.share(1)},
        )


def _is_head_of_frozen_network(seen: Observation, tokens: Tokens) -> bool:
    """Return whether a new head learns on a frozen network, as those for later tokens do."""
    head = next((call for call in tokens.loss.prediction.before() if call.is_layer), None)
    return head is not None and _trains(seen, head.parameters) > _trains(
        seen, tokens.call.parameters
    )


def _trains(seen: Observation, names: list[str]) -> bool:
    return any(name in seen.weights and seen.weights[name].is_trainable for name in names)
