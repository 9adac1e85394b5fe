"""Run the training step again, mostly in eval mode on few samples of a rare number."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, default_collate

from lightning_practices._names import module_name
from lightning_practices.advisor._isolation import isolated
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._trace import Call, Recorder, Value

_SIZES = (7, 11, 13, 17, 5, 3)  # rare as sizes of features


def sizes_of(seen: Observation) -> list[int]:
    """Return the numbers of samples to try: a rare one, then that of the batches.

    Empty where a batch isn't known to hold the samples along its first dimension, or the module
    steps by itself.
    """
    loader = seen.train.loader
    is_plain = isinstance(loader, DataLoader) and loader.collate_fn is default_collate
    if not is_plain or loader.batch_size is None or not seen.module.automatic_optimization:
        return []
    loaded, received = (tree_leaves(x) for x in (seen.train.batches[0].loaded, seen.step.batch))
    if not received or not all(isinstance(x, Tensor) and x.dim() for x in [*loaded, *received]):
        return []
    sizes = {len(x) for x in [*loaded, *received]}
    if len(sizes) != 1:
        return []
    (total,) = sizes
    values = (x for call in seen.step.calls for x in [*call.inputs, *call.outputs])
    taken = {size for x in values for size in x.shape}
    rare = [size for size in _SIZES if size < total and size not in taken]
    return [*rare[:1], *([total] if total > 1 else [])]


def eval_step(seen: Observation, size: int, changed: int | None = None) -> Step | None:
    """Run the training step in eval mode on the first samples of the first batch.

    Args:
        seen: The observation.
        size: The number of samples.
        changed: Place of a sample that another one of the batch replaces, or ``None``.

    Returns:
        The step; ``None`` if it raised an exception, as of a module with a fixed batch size.
    """

    def chosen(x: Tensor) -> Tensor:
        found = x.detach()[:size].clone()
        if changed is not None:
            found[changed] = x.detach()[(changed + size) % len(x) or 1]
        return found

    return run_again(seen, tree_map(chosen, seen.step.batch))


def batch_of(seen: Observation) -> Any:
    """Return a copy of the first batch, without a graph, to run a step on."""
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, seen.step.batch)


def run_again(
    seen: Observation,
    batch: Any,
    mode: AbstractContextManager[Any] | None = None,
    after: Callable[[Tensor], None] | None = None,
    training: bool = False,
) -> Step | None:
    """Run the training step on a batch, from a fixed seed.

    Args:
        seen: The observation.
        batch: The batch.
        mode: A mode of torch in which the step runs, or ``None``.
        after: Is called with the loss, if the step returns one, or ``None``.
        training: Whether the modules keep their modes; otherwise all are in eval mode.

    Returns:
        The step; ``None`` if it raised an exception.
    """
    found = run_with_loss(seen, batch, mode, training)
    if found is None:
        return None
    step, loss = found
    if after is not None and loss is not None:
        after(loss)
    return step


def run_with_loss(
    seen: Observation,
    batch: Any,
    mode: AbstractContextManager[Any] | None = None,
    training: bool = False,
) -> tuple[Step, Tensor | None] | None:
    """Return what :func:`run_again` does, with the loss, which has its graph."""
    module = seen.module
    recorder = Recorder(module)
    arguments = (batch, 0)[: len(inspect.signature(module.training_step).parameters)]
    with isolated(module), torch.compiler.set_stance("force_eager"), quiet(seen, training):
        try:
            with recorder.watching(), torch.enable_grad(), mode or nullcontext():
                recorder.begin(batch)
                result: Any = module.training_step(*arguments)
                recorder.is_on = False
        except Exception:  # the user's code, on a batch that it may not expect
            return None
    loss = result.get("loss") if isinstance(result, dict) else result
    loss = loss if isinstance(loss, Tensor) else None
    roots = [] if loss is None else [recorder.value_of(loss)]
    step = Step(recorder.calls, roots, batch, {})
    seen.trials.append(step)
    return step, loss


@contextmanager
def quiet(seen: Observation, training: bool = False) -> Iterator[None]:
    """Put the observed module into a mode, and let it log nothing: no loop of a fit runs."""
    module = seen.module
    modes = {part: part.training for part in module.modules()}
    names = ("log", "log_dict")
    own = {name: vars(module)[name] for name in names if name in vars(module)}
    try:
        for name in names:
            setattr(module, name, lambda *args, **kwargs: None)
        for name, part in module.named_modules():
            part.training = training and seen.step.modes.get(module_name(name), True)
        yield
    finally:
        for name in names:
            delattr(module, name)
        for name, log in own.items():
            setattr(module, name, log)
        for part, mode in modes.items():
            part.training = mode


def depends_on_others(seen: Observation, size: int) -> bool:
    """Whether predictions of a loss change with a sample that isn't theirs."""
    steps = [eval_step(seen, size), eval_step(seen, size, changed=0)]
    if steps[0] is None or steps[1] is None:
        return False
    pairs = [[loss.prediction.tensor for loss in step.losses] for step in steps if step]
    for x, y in zip(*pairs, strict=False):
        if x is None or y is None or x.shape != y.shape or not x.dim() or len(x) % size:
            continue
        differs = (x != y) & ~(x.isnan() & y.isnan())
        rows = differs.reshape(len(x), -1).any(dim=1)
        each = rows.reshape(size, -1), rows.reshape(-1, size).T  # samples first, or last
        if all(bool(owned[1:].any()) for owned in each):
            return True
    return False


class Owners:
    """Which sample the elements of a step's values belong to, as far as this is known.

    Args:
        step: A step on few samples.
        size: Their number.
    """

    def __init__(self, step: Step, size: int) -> None:
        self._size = size
        self._rows: dict[int, Tensor] = {}  # the sample of each row of a value, by its id
        self.mixing = [call for call in step.calls if call.outputs and self._mixes(call)]

    def _of(self, value: Value) -> Tensor | None:
        shape, size = value.shape, self._size
        if (rows := self._rows.get(id(value))) is not None:
            return rows.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
        if not value.is_data or shape.count(size) != 1:
            return None
        place = shape.index(size)
        return _along(place, shape)

    def _mixes(self, call: Call) -> bool:
        """Note the owners of a call's result, and say whether its dimension of samples is none."""
        if not call.data:
            return False
        value, made = call.data[0], call.output
        if call.name not in RESHAPES:
            rows = self._rows.get(id(value))
            if rows is not None and made.shape[:1] == value.shape[:1]:
                self._rows[id(made)] = rows
            return False
        owners = self._of(value)
        if owners is None:
            return False
        owners = owners.reshape(made.shape)
        if made.shape.count(self._size) == 1:
            return not torch.equal(owners, _along(made.shape.index(self._size), made.shape))
        if made.shape and self._size not in made.shape:
            rows = owners.reshape(len(owners), -1)
            if bool((rows == rows[:, :1]).all()):
                self._rows[id(made)] = rows[:, 0]
        return False


RESHAPES = frozenset({"view", "reshape", "flatten", "unflatten", "view_as", "reshape_as"})


def _along(place: int, shape: tuple[int, ...]) -> Tensor:
    places = torch.arange(shape[place]).reshape(-1, *[1] * (len(shape) - 1 - place))
    return places.expand(shape)
