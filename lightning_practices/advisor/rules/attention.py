"""Attention whose weights don't sum to 1 over what it reads, or whose mask is inverted."""

from collections.abc import Iterator

from torch import Tensor

from lightning_practices.advisor._kinds import DROPOUTS
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._outputs import softmax_dimension
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Value

_PRODUCTS = frozenset({"matmul", "bmm"})
_ON_THE_WAY = frozenset({"mul", "div", "add", "sub", "masked_fill", "where"})
_LEAST = 0.05  # share of the positions that are padding, and that aren't


@rule(
    "LP141", "error",
    practice="Weights of attention sum to 1 over the positions that are read",
    measures="the dimension of a softmax of a product of queries and keys whose result multiplies"
    " values from the left",
    healthy="the last dimension, or the second last where queries compete for other inputs",
    source="Vaswani et al., 2017, arXiv:1706.03762, section 3.2.1; questions on forums about the"
    " dim of a softmax in attention",
)  # fmt: skip
def softmax_of_attention(seen: Observation) -> Iterator[Evidence]:
    step = seen.step
    for call in step.calls:
        dimension = softmax_dimension(call) if call.name == "softmax" else None
        shape = call.output.shape if dimension is not None else ()
        if len(shape) < 3 or dimension == len(shape) - 1 or not call.output.requires_grad:
            continue
        # Slots and capsules compete for what they read, by scores that aren't square.
        is_own = shape[-1] == shape[-2] or dimension != len(shape) - 2
        if is_own and _is_of_scores(call.inputs[0]) and _multiplies_values(step, call.output):
            yield Evidence(
                f"{call} is over dimension {dimension} of scores of shape {shape}, and the product"
                f" with the values sums over dimension {len(shape) - 1}: the weights of a query"
                " don't sum to 1",
                "softmax(scores, dim=-1)",
                (call.module,) if call.module else (),
            )


def _is_of_scores(value: Value) -> bool:
    """Return whether a value is a product of two others with a gradient, scaled or masked."""
    call = value.maker()
    while call is not None and call.name in _ON_THE_WAY:
        inputs = [x for x in call.inputs if x.requires_grad]
        call = inputs[0].maker() if len(inputs) == 1 else None
    if call is None or call.name not in _PRODUCTS:
        return False
    return sum(x.requires_grad and x.origin().parameter is None for x in call.inputs) == 2


def _multiplies_values(step: Step, weights: Value) -> bool:
    """Return whether weights are the left one of two factors of a matrix product."""
    for user in step.users(weights):
        if user.name in DROPOUTS and _multiplies_values(step, user.output):
            return True
        if user.name in _PRODUCTS and user.args and user.args[0] is weights:
            return True
    return False


@rule(
    "LP142", "error",
    practice="A padding mask hides padding",
    measures="key_padding_mask beside the tokens that an embedding with padding_idx reads",
    healthy="padding is masked, and nothing else",
    source="torch.nn.MultiheadAttention: True is for keys that attention ignores; questions on"
    " forums about src_key_padding_mask",
)  # fmt: skip
def inverted_padding_mask(seen: Observation) -> Iterator[Evidence]:
    read = [
        call.inputs[0].tensor == call.get(2, "padding_idx")
        for call, value in seen.step.first_layers
        if call.name == "embedding" and call.get(2, "padding_idx") is not None
        and value.tensor is not None
    ]  # fmt: skip
    for call in seen.step.calls:
        mask = _padding_mask(call)
        for padding in read if mask is not None else ():
            share = float(padding.float().mean())
            is_opposite = mask is not None and mask.shape == padding.shape
            if is_opposite and _LEAST < share < 1 - _LEAST and bool((mask == ~padding).all()):
                names = [name for name in call.stack if name]
                yield Evidence(
                    f"the key_padding_mask of {call} is inverted: it hides the {1 - share:.0%} of"
                    " the keys that are tokens, and attention reads the padding alone",
                    "src_key_padding_mask=(tokens == padding_idx): True hides a key",
                    tuple(dict.fromkeys(names)),
                    {"hidden": 1 - share},
                )
                return


def _padding_mask(call: Call) -> Tensor | None:
    """Return which keys an attention of torch ignores, of shape (samples, keys)."""
    if call.name != "multi_head_attention_forward":
        return None
    value = call.kwargs.get("key_padding_mask")
    tensor = value.tensor if isinstance(value, Value) else None
    if tensor is None:
        return None
    return tensor == float("-inf") if tensor.is_floating_point() else tensor.bool()
