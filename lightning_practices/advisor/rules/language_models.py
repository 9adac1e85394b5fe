"""Language models that see the tokens which they have to predict."""

from collections.abc import Iterator

from torch import nn

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._sequences import Changes, Tokens, tokens_of

_ATTENTION = (
    nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer,
    nn.TransformerDecoder, nn.TransformerDecoderLayer, nn.Transformer,
)  # fmt: skip


@rule(
    "LP243", "error",
    practice="A language model doesn't see the tokens that it predicts",
    measures="predictions in eval mode that change with a later token, where the targets are the"
    " next tokens",
    healthy="none do; where targets aren't the next tokens, models may read in both directions",
    source="Vaswani et al., 2017, arXiv:1706.03762: masking in the decoder; questions on forums"
    " about a transformer whose loss falls to 0 and that generates nonsense",
)  # fmt: skip
def sees_next_tokens(seen: Observation) -> Iterator[Evidence]:
    if not seen.module.automatic_optimization or seen.failure is not None:
        return
    if len({id(one.call) for one in _all(seen) if one.are_next}) != 1:
        return  # none, or an encoder and a decoder of the same sequence
    changes = Changes(seen, lambda one: one.are_next)
    tokens = changes.tokens
    if tokens is None:
        return
    start = tokens.read.shape[1] // 2
    changed = changes.after(start)
    if changed is None:
        return
    early = tokens.kept.clone()
    early[:, start:] = False
    count = int((changed & early).sum())
    if count:
        names = _mixers(seen, tokens) or tuple(filter(None, [layer_of(tokens.loss.prediction)]))
        yield Evidence(
            f"the targets of {tokens.loss.call} are the next tokens, but predictions change with"
            f" tokens that come later: {count} of the {int(early.sum())} predictions of the"
            f" positions before {start} do so with the tokens from there on, so that the model can"
            " read the answer",
            "a causal mask, such as nn.Transformer.generate_square_subsequent_mask(length) as mask,"
            " or is_causal=True; a recurrent network in one direction; convolutions padded at the"
            " left alone",
            names,
            {"changed": count / int(early.sum())},
        )


@rule(
    "LP244", "error",
    practice="Targets of a language model are the next tokens",
    measures="targets that equal the tokens at the same positions, of a model whose predictions"
    " change with the token at their position, and with no later one",
    healthy="targets one position later; an autoencoder's predictions change with later tokens, and"
    " those of a model that shifts within itself don't change with their own",
    source="Radford et al., 2018, Improving language understanding by generative pre-training;"
    " questions on forums about a language model that repeats its input",
)  # fmt: skip
def targets_are_inputs(seen: Observation) -> Iterator[Evidence]:
    if not seen.module.automatic_optimization or seen.failure is not None:
        return
    if len({id(one.call) for one in _all(seen) if one.are_same}) != 1:
        return
    changes = Changes(seen, lambda one: one.are_same)
    tokens, found = changes.tokens, changes.of_one_token()
    if tokens is None or found is None:
        return
    place, columns = found
    if columns[place] and columns[place + 1 :].any() and not columns[:place].any():
        yield Evidence(
            f"the targets of {tokens.loss.call} equal the tokens at the same positions, which the"
            " model sees: it learns to repeat its input",
            "cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())",
            tuple(filter(None, [layer_of(tokens.loss.prediction)])),
            {"equal": 1.0},
        )


def _all(seen: Observation) -> list[Tokens]:
    return list(tokens_of(seen.step))


def _mixers(seen: Observation, tokens: Tokens) -> tuple[str, ...]:
    """Return the modules that attend, or read in both directions, before the predictions."""
    names = [name for call in tokens.loss.prediction.before() for name in call.stack]
    return tuple(
        name
        for name in dict.fromkeys(reversed(names))
        if isinstance(part := seen.modules.get(name), _ATTENTION)
        or (isinstance(part, nn.RNNBase) and part.bidirectional)
    )
