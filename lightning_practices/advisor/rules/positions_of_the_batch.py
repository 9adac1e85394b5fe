"""Position encodings that follow the samples instead of the time steps."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._small_batches import eval_step, sizes_of
from lightning_practices.advisor._trace import Call, Value

_SUMS = frozenset({"add", "__add__", "__radd__"})


@rule(
    "LP119", "warning",
    practice="Positions are those of time steps",
    measures="a table of positions, cut to the number of samples, that is added to sequences",
    healthy="tables are cut to the length of the sequences",
    source="questions about the PositionalEncoding of PyTorch's tutorial, which expects time first,"
    " under batch_first=True",
)  # fmt: skip
def positions_of_the_batch(seen: Observation) -> Iterator[Evidence]:
    sizes = sizes_of(seen)
    # The rare size tells; the whole batch's may be that of a sequence too.
    if not sizes or not any(_positions(call, sizes[-1]) for call in seen.step.calls):
        return
    step = eval_step(seen, sizes[0])
    for call in () if step is None else step.calls:
        table = _positions(call, sizes[0])
        if table is not None:
            yield Evidence(
                f"{call} adds a table of shape {table.shape} to a batch of shape"
                f" {call.data[0].shape}, samples first: a sample's output depends on its place in"
                " the batch, and its time steps get no positions",
                "x + self.pe[: x.shape[1]].transpose(0, 1), where x has the batch first",
                (call.module,) if call.module else (),
            )
            return


def _positions(call: Call, size: int) -> Value | None:
    """Return the table that a sum adds to sequences along their samples, or ``None``."""
    if call.name not in _SUMS or len(call.inputs) != 2 or len(call.data) != 1:
        return None
    (x,) = call.data
    table = next(value for value in call.inputs if not value.is_data)
    is_along = table.shape[:2] == (size, 1) and table.shape[2:] == x.shape[2:]
    is_sequence = len(x.shape) == 3 and x.shape[0] == size and x.shape[1] > 1
    origin = table.origin()
    is_cut = origin.shape[:1] != (size,) and (origin.source or "").startswith(("buffer", "param"))
    is_looked_up = origin.call is not None and origin.call.name == "embedding"
    return table if is_along and is_sequence and (is_cut or is_looked_up) else None
