"""Batch norms of a frozen module that still change their running statistics."""

from collections.abc import Iterator

from torch.nn.modules.batchnorm import _BatchNorm

from lightning_practices._names import count, some
from lightning_practices.advisor._observation import Observation, Weight
from lightning_practices.advisor._parameters import is_copy, outermost_where
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP102", "warning",
    practice="Batch norms of a frozen module are in eval mode",
    measures="the mode of batch norms in modules without a trainable parameter",
    healthy="eval mode; training mode in copies of trained modules, such as momentum encoders",
    source="torch's notes on autograd: requires_grad and eval mode are independent",
)  # fmt: skip
def frozen_batch_norm_trains(seen: Observation) -> Iterator[Evidence]:
    called = {name for call in seen.step.calls for name in (call.module, *call.stack)}
    moving = [
        name
        for name, part in seen.modules.items()
        if isinstance(part, _BatchNorm) and part.track_running_stats and part.momentum != 0.0
        and seen.step.modes.get(name) and name in called
    ]  # fmt: skip
    frozen = {
        name: [weight.is_trainable for weight in _parameters(seen, name)]
        for name in seen.modules
        if name
    }
    frozen_names = [name for name, trained in frozen.items() if trained and not any(trained)]
    for name in outermost_where(list(seen.modules), frozen_names):
        within = [each for each in moving if each.startswith(f"{name}.")]
        norms = sum(len(_parameters(seen, each)) for each in within)
        if within and len(frozen[name]) > norms and not is_copy(seen, name):
            yield Evidence(
                f"{name} has no trainable parameter, but {count(len(within), 'batch norm')} in it"
                f" ({some(within)}) moved: training mode changes the running statistics in each"
                " step, and normalises by those of the batch",
                f"self.{name}.eval() in on_train_epoch_start",
                (name, *within),
                {"norms": len(within)},
            )


def _parameters(seen: Observation, module: str) -> list[Weight]:
    names = set(seen.names.values())
    return [
        weight
        for name, weight in seen.weights.items()
        if name.startswith(f"{module}.") and name in names
    ]
