"""Training steps that put the module into eval mode."""

from collections.abc import Iterator

from lightning_practices._names import some
from lightning_practices.advisor._fit import mentions
from lightning_practices.advisor._gradient_paths import Paths
from lightning_practices.advisor._kinds import DROPOUTS
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._parameters import has_gradient, outermost_where, trainable
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call

_NORMS = frozenset({"batch_norm", "sync_batch_norm"})
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


@rule(
    "LP131", "warning",
    practice="Training steps run in training mode",
    measures="the mode of the dropouts and batch norms between the parameters and the loss, and of"
    " the modules around them, at the end of the first step",
    healthy="training mode; eval mode of a part of the model, of batch norms alone, or of a model"
    " whose batch norms have statistics of an earlier training",
    source="questions on forums about eval() in training_step; Lightning: fit keeps the mode that"
    " each module has",
    explained_by=("LP101",),
)  # fmt: skip
def eval_mode_in_training(seen: Observation) -> Iterator[Evidence]:
    reach = Paths(seen.step).reach
    calls = [
        (call, mode)
        for call in seen.step.calls
        if id(call) in reach and call.output.requires_grad and (mode := _mode(call)) is not None
    ]
    if not calls or not all(seen.modes.get(call.module, True) for call, _ in calls):
        return
    kinds = {call.name for call, _ in calls}
    are_norms = kinds <= _NORMS
    place = _whole_in_eval_mode(seen)
    if not any(mode for _, mode in calls):
        if (place is None and are_norms) or (are_norms and not _is_fresh(seen, calls[0][0])):
            return
        is_back = all(seen.step.modes.get(call.module, True) for call, _ in calls)
        if place is None and not (is_back and _changes_modes(seen)):
            return  # a part of the model, or a dropout that is off by an argument
        when = "in the training step"
    elif place is not None and not mentions(type(seen.module), "train"):
        when = "from the second training step on: the first leaves the module in eval mode"
    else:
        return
    modules = tuple(dict.fromkeys(call.module for call, _ in calls if call.module))
    names = (place, *modules) if place else modules
    yield Evidence(
        f"{some(sorted(kinds))} of {some(modules) or 'the module'} act as in validation {when}, as"
        " a hook or a step calls eval(): nothing is dropped, and batch norms don't see the batch",
        "leave out eval() in training hooks and steps: Lightning calls it for validation; self."
        f"{place + '.' if place else ''}train() after what needs eval mode",
        names,
        {"calls": len(calls)},
    )


def _changes_modes(seen: Observation) -> bool:
    kinds = {type(part) for part in seen.modules.values()}
    return any(mentions(kind, "eval", "train") for kind in kinds)


def _mode(call: Call) -> bool | None:
    """Return whether a function acts as in training; ``None`` for one without modes."""
    if call.name in _NORMS:
        is_tracking = call.get(1, "running_mean") is not None
        return bool(call.get(5, "training", False)) if is_tracking else None
    if call.name in DROPOUTS:
        return bool(call.get(2, "training", True)) if call.get(1, "p", 0.5) else None
    if call.name == "multi_head_attention_forward":
        is_dropping = isinstance(rate := call.get(10, "dropout_p"), float) and rate > 0
        return bool(call.kwargs.get("training", True)) if is_dropping else None
    if call.name in _RECURRENT:
        rates = [x for x in call.args if isinstance(x, float)]
        flags = [x for x in call.args if isinstance(x, bool)]  # bias, train, bidirectional, ...
        return flags[1] if any(rates) and len(flags) > 1 else None
    return None


def _whole_in_eval_mode(seen: Observation) -> str | None:
    """Return the module with all trained parameters that is in eval mode since the fit began."""
    trained = [name for name in trainable(seen) if has_gradient(seen.steps, name)]
    modes = seen.step.modes
    still = {name for name, mode in modes.items() if not mode and seen.modes.get(name, False)}
    for name in outermost_where(modes, still):
        prefix = f"{name}." if name else ""
        part = seen.modules.get(name)
        is_whole = bool(trained) and all(one.startswith(prefix) for one in trained)
        if part is not None and any(True for _ in part.children()) and is_whole:
            return name
    return None


def _is_fresh(seen: Observation, call: Call) -> bool:
    """Return whether a batch norm's statistics were those of an untrained one before the fit."""
    names = [x.source or "" for x in call.inputs if (x.source or "").startswith("buffer ")]
    found = [seen.weights.get(name.removeprefix("buffer ")) for name in names]
    return all(
        one is None or (one.statistics.std == 0 and one.statistics.mean in (0.0, 1.0))
        for one in found
    )
