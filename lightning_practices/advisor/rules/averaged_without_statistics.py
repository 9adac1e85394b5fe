"""An average of weights whose batch norms keep the statistics of new layers."""

from collections.abc import Iterator

from torch.nn.modules.batchnorm import _BatchNorm

from lightning_practices._names import some
from lightning_practices.advisor._fit import mentions
from lightning_practices.advisor._norms_state import was_fresh
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._parameters import is_copy, is_moved, optimized
from lightning_practices.advisor._rule import Evidence, rule

_COPYING = (
    "buffers", "named_buffers", "state_dict", "load_state_dict", "running_mean", "update_bn",
    "copy_buffers", "_buffers",
)  # fmt: skip
_MAKERS = ("__init__", "setup", "configure_model")


@rule(
    "LP527", "warning",
    practice="An average of weights has statistics of batch norm",
    measures="running statistics of batch norms in eval mode, in a copy whose weights a step moves",
    healthy="copied or averaged with the weights, or a copy in training mode",
    source="Tarvainen and Valpola, 2017, arXiv:1703.01780; torch.optim.swa_utils.update_bn;"
    " reports of teachers that get worse",
)  # fmt: skip
def averaged_without_statistics(seen: Observation) -> Iterator[Evidence]:
    kinds: list[type] = [type(part) for part in (seen.module, *seen.callbacks)]
    if any(mentions(kind, *_COPYING, apart_from=_MAKERS) for kind in kinds):
        return
    steps = [step for step in (seen.step, seen.validation_step) if step is not None]
    called = {
        call.module
        for step in steps
        for call in step.calls
        if call.name in ("batch_norm", "sync_batch_norm") and not step.modes.get(call.module, True)
    }
    places = optimized(seen)
    found: dict[str, list[str]] = {}
    for name in sorted(called):
        module = seen.modules.get(name)
        if not isinstance(module, _BatchNorm) or seen.step.modes.get(name, True):
            continue
        if not was_fresh(seen, name) or _has_statistics(module):
            continue
        if (copy := _copy_of(seen, name)) is not None and _is_averaged(seen, copy, places):
            found.setdefault(copy, []).append(name)
    for copy, names in found.items():
        yield Evidence(
            f"the weights of {copy} follow those that are trained, and the running statistics of"
            f" {some(names)}, in eval mode, stay at mean 0 and variance 1: its outputs fit its"
            " weights less and less",
            "for own, other in zip(teacher.buffers(), student.buffers()): own.copy_(other)",
            (copy, *names),
        )


def _copy_of(seen: Observation, name: str) -> str | None:
    """Return the copy that a batch norm is in, of a module whose own one averages statistics."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        copy, rest = ".".join(parts[:length]), ".".join(parts[length:])
        if is_copy(seen, copy) and any(
            isinstance(twin, _BatchNorm) and _has_statistics(twin)
            for other in seen.modules
            if other != copy and (twin := seen.modules.get(f"{other}.{rest}")) is not None
        ):
            return copy
    return None


def _is_averaged(seen: Observation, copy: str, places: dict[str, list[int]]) -> bool:
    """Whether the weights of a module change, and no optimizer holds them."""
    weights = dict(seen.modules[copy].named_parameters())
    names = [f"{copy}.{name}" for name in weights]
    names = [name for name in names if name in seen.weights]
    return not any(name in places for name in names) and any(is_moved(seen, x) for x in names)


def _has_statistics(module: _BatchNorm) -> bool:
    """Whether the running statistics are no longer those of a new layer."""
    mean, variance = module.running_mean, module.running_var
    if mean is None or variance is None:
        return False
    return bool(mean.any()) or bool((variance != 1).any())
