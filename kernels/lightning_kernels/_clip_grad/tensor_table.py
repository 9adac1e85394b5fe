"""A table of tensors in device memory, from which one launch reads any number of tensors."""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_SIZE = 32768  # most elements of a piece
COLUMNS = 3  # columns of the table: address, number of elements, code of the dtype
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # the code of a dtype is its index
_ALIGNMENT = 16  # bytes that the widest load reads, at a multiple of which it must begin
_MAX_TABLES = 32  # size of the cache: tables of a few sets of tensors on a few devices


class TensorTable(NamedTuple):
    """Dense tensors on one device, and the table of their pieces.

    Each piece begins at a multiple of 16 bytes. If a tensor does not begin at such an address, the
    elements before the first one are an extra piece.

    Attributes:
        tensors: The tensors.
        pieces: The table, int64 of shape ``(pieces, COLUMNS)``, on the device of the tensors.
    """

    tensors: Sequence[Tensor]
    pieces: Tensor


_tables: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()
_of_graphs: list[Tensor] = []  # tables that CUDA graphs copy at each replay, and their sources


def table_of(
    tensors: Sequence[Tensor], are_served: Callable[[Sequence[Tensor]], bool]
) -> TensorTable | None:
    """Return the table of tensors, or ``None`` if the kernels don't support all of them.

    If the tensors have the same addresses and layouts as at an earlier call, the cached table is
    returned at once. Gradients keep their addresses with ``zero_grad(set_to_none=False)``, and
    mostly with torch's caching allocator. Otherwise a new table is copied to the device, from
    pinned memory, without a synchronisation.

    Args:
        tensors: Tensors. The first is on a device whose tensors the kernels can read.
        are_served: Function that returns whether the kernels support all tensors: dense, with
            dtypes of :data:`DTYPES`, and on one device.
    """
    key = _key(tensors, _describe)
    if key not in _tables and not are_served(tensors):
        return None
    return TensorTable(tensors, _kept(tensors, _describe, key))


def kept_on_device(
    tensors: Sequence[Tensor], describe: Callable[[Sequence[Tensor]], Tensor]
) -> Tensor:
    """Return ``describe(tensors)`` on the device of the tensors.

    The result is cached by the addresses, layouts and dtypes of the tensors, and by the current
    stream, on which it is copied.
    """
    return _kept(tensors, describe, _key(tensors, describe))


def _key(
    tensors: Sequence[Tensor], describe: Callable[[Sequence[Tensor]], Tensor]
) -> tuple[object, ...]:
    device = tensors[0].device
    # A stream does not wait for the copy that another stream has queued.
    stream = torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else 0
    places = [(address_of(t), t.dtype, t.shape, t.stride()) for t in tensors]
    return describe, device, stream, *places


def _kept(
    tensors: Sequence[Tensor],
    describe: Callable[[Sequence[Tensor]], Tensor],
    key: tuple[object, ...],
) -> Tensor:
    device = tensors[0].device
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        # The graph copies the source at each replay, so the source must live as long as the graph,
        # which can't be told from here. Before the first replay the table has no content, so eager
        # calls can't use it.
        source = describe(tensors).pin_memory()
        table = source.to(device, non_blocking=True)
        _of_graphs.extend((source, table))
        return table
    if key in _tables:
        _tables.move_to_end(key)  # ordered by last use
        return _tables[key]
    table = describe(tensors)
    if device.type == "cuda":
        table = table.pin_memory()
    table = table.to(device, non_blocking=True)
    if len(_tables) >= _MAX_TABLES:
        _tables.popitem(last=False)
    _tables[key] = table
    return table


def address_of(tensor: Tensor) -> int:
    """Return the address of the tensor in the memory of its device."""
    return tensor.data_ptr()


def _pieces(addresses: list[int], sizes: list[int], codes: list[int]) -> Tensor:
    """Return the table of the pieces of tensors with these addresses, sizes and dtype codes."""
    rows = torch.tensor([addresses, sizes, codes], dtype=torch.int64)
    address, size, code = rows
    item = torch.tensor([dtype.itemsize for dtype in DTYPES])[code]
    head = torch.minimum((-address % _ALIGNMENT) // item, size)
    rest = size - head
    counts = (rest + CHUNK_SIZE - 1) // CHUNK_SIZE
    owner = torch.arange(len(sizes)).repeat_interleave(counts)
    number = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    first = head[owner] + number * CHUNK_SIZE
    length = (size[owner] - first).clamp(max=CHUNK_SIZE)
    whole = torch.stack((address[owner] + first * item[owner], length, code[owner]), 1)
    heads = torch.stack((address, head, code), 1)[head > 0]
    return torch.cat((whole, heads))


@contextlib.contextmanager
def widened(table: TensorTable) -> Iterator[TensorTable]:
    """Yield a table with float32 copies of the bfloat16 tensors. Copy them back at the end."""
    with widened_tensors(table.tensors) as wide:
        yield table if wide is table.tensors else TensorTable(wide, _describe(wide))


@contextlib.contextmanager
def widened_tensors(tensors: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Yield dense tensors with float32 copies of the bfloat16 ones. Copy them back at the end."""
    if all(t.dtype != torch.bfloat16 for t in tensors):
        yield tensors
        return
    wide = [t.float() if t.dtype == torch.bfloat16 else t for t in tensors]
    yield wide
    for tensor, copy in zip(tensors, wide, strict=True):
        if tensor is not copy:
            tensor.data.copy_(copy)


def _describe(tensors: Sequence[Tensor]) -> Tensor:
    return _pieces(
        [address_of(t) for t in tensors],
        [t.numel() for t in tensors],
        [DTYPES.index(t.dtype) for t in tensors],
    )
