"""Samples of a batch that influence each other in eval mode."""

from collections.abc import Iterator

from torch import nn

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._small_batches import (
    RESHAPES,
    Owners,
    depends_on_others,
    eval_step,
    sizes_of,
)
from lightning_practices.advisor._trace import Call

_ATTENTION = "multi_head_attention_forward"
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_SEQUENCES = (nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer,
              nn.TransformerDecoder, nn.TransformerDecoderLayer, nn.Transformer)  # fmt: skip


@rule(
    "LP113", "error",
    practice="A sample's output depends on that sample alone",
    measures="predictions in eval mode that change with another sample, after a reshape that moves"
    " elements between samples, or a sequence layer that takes the samples for time steps",
    healthy="none; graphs, attention between samples and contrastive losses mix on purpose, and not"
    " in these ways",
    source="Karpathy, 2019, A recipe for training neural networks: view in place of transpose;"
    " questions about batch_first",
)  # fmt: skip
def samples_mix(seen: Observation) -> Iterator[Evidence]:
    if not any(_is_suspect(call) for call in seen.step.calls):
        return
    for size in sizes_of(seen):
        step = eval_step(seen, size)
        if step is None:
            continue
        reshaped = Owners(step, size).mixing[:1]
        over = [call for call in step.calls if not reshaped and _runs_over(seen, call, size)]
        if (reshaped or over) and depends_on_others(seen, size):
            yield from (_of_reshape(call) for call in reshaped)
            yield from (_of_sequence(seen, call) for call in over[:1])
        return


def _is_suspect(call: Call) -> bool:
    if call.name in _RECURRENT or call.name == _ATTENTION:
        return True
    moved = call.name in RESHAPES and call.data and call.outputs
    return bool(moved) and call.data[0].shape[:1] != call.output.shape[:1]


def _runs_over(seen: Observation, call: Call, size: int) -> bool:
    """Whether a recurrent layer or an attention takes the samples for the steps of a sequence."""
    shape = call.data[0].shape if call.data else ()
    layer = seen.modules.get(call.module)
    if len(shape) != 3 or shape.count(size) != 1:
        return False
    if call.name == _ATTENTION:  # of (length, batch, features); a batch of one is on purpose
        return shape[0] == size and shape[1] > 1
    if call.name not in _RECURRENT or not isinstance(layer, nn.RNNBase):
        return False
    length, batch = (1, 0) if layer.batch_first else (0, 1)
    samples = seen.train.samples
    # A batch that isn't shuffled may be one series.
    is_shuffled = samples is not None and samples.is_shuffled
    return shape[length] == size and (shape[batch] > 1 or is_shuffled)


def _of_reshape(call: Call) -> Evidence:
    before, after = call.data[0].shape, call.output.shape
    return Evidence(
        f"{call} turns {before} into {after} and puts elements of several samples where one was:"
        " in eval mode, the outputs of a sample change with the other samples",
        "x.transpose(0, 1) or x.permute(...) to swap dimensions, and reshape(len(x), -1) with the"
        " batch first",
        (call.module,) if call.module else (),
        {"dimensions": len(after)},
    )


def _of_sequence(seen: Observation, call: Call) -> Evidence:
    names = [name for name in call.stack if isinstance(seen.modules.get(name), _SEQUENCES)]
    part = seen.modules.get(call.module)
    is_first = bool(getattr(part, "batch_first", False))
    is_single = 1 in call.data[0].shape[:2]
    remedy = f"{type(part).__name__}(..., batch_first={not is_first})"
    return Evidence(
        f"{call} has batch_first={is_first} and gets the samples in the place of time steps: in"
        " eval mode, the outputs of a sample change with the other samples",
        "x.unsqueeze(1) for sequences of one step, or a linear layer" if is_single else remedy,
        tuple(names) or (call.module,),
    )
