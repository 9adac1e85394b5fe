"""Modules that train in eval mode."""

from collections.abc import Iterator

from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from lightning_practices._modes import depends_on_mode
from lightning_practices._names import count, some
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._parameters import (
    has_gradient,
    optimized,
    outermost_where,
    shares_with_user,
    trainable,
)
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP101", "warning",
    practice="Modules that are trained are in training mode",
    measures="the mode of modules whose parameters have gradients, and dropout and batch norms",
    healthy="training mode; eval mode for frozen modules, for batch norms alone, or set by a hook",
    source="Lightning since 2.2: fit keeps the mode that each module has; from_pretrained of"
    " transformers returns models in eval mode",
)  # fmt: skip
def modules_in_eval_mode(seen: Observation) -> Iterator[Evidence]:
    places = optimized(seen)
    is_known = seen.optimizers and not shares_with_user(seen)
    trained = [
        name
        for name in trainable(seen)
        if has_gradient(seen.steps, name) and (name in places or not is_known)
    ]
    # A module that a hook puts into eval mode at the start of the fit is there on purpose.
    still = {name for name, mode in seen.step.modes.items() if not mode and not seen.modes[name]}
    for name in outermost_where(seen.step.modes, still):
        module = seen.modules.get(name)
        prefix = f"{name}." if name else ""
        own = [each for each in trained if each.startswith(prefix)]
        if module is None or not own or isinstance(module, _BatchNorm | _DropoutNd):
            continue
        within = [
            prefix + each
            for each, part in module.named_modules()
            if each and not part.training and depends_on_mode(part)
        ]
        if within:
            shown = name or "The module"
            yield Evidence(
                f"{shown} is in eval mode while {count(len(own), 'parameter')} of it get gradients:"
                f" {some(within)} act as in validation",
                f"self.{name}.train() where it is made" if name else "module.train() before fit",
                (name,) if name else tuple(within),
                {"parameters": len(own)},
            )
