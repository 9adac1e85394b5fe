"""The calls whose machine code is tested and reported, one call per class of shapes.

The compiler distinguishes classes of shapes. All shapes of a class share their machine code, so
each class is compiled once. The 16-bit dtypes differ only in a conversion; fp16 and fp32 are listed
for shapes where the dtype could matter.

- ``rows``, ``channels``, ``drops``, ``clips``: the calls of each family of functions.
- ``inputs``: what they have in common.
"""

import functools

from benchmarks.launches import channels, clips, drops, rows
from benchmarks.launches.inputs import Call
from benchmarks.machine_code import MULTIPROCESSORS, Launch, record_launches

CALLS: dict[str, Call] = rows.CALLS | channels.CALLS | drops.CALLS | clips.CALLS


@functools.cache
def launches_of(name: str, multiprocessors: int = MULTIPROCESSORS) -> tuple[Launch, ...]:
    """Return the kernel launches of the call named ``name`` in :data:`CALLS`.

    Args:
        name: Name of the call.
        multiprocessors: Number of multiprocessors of the GPU, on which grids depend.
    """
    with record_launches(multiprocessors) as launches:
        CALLS[name].run()
    return tuple(launches)
