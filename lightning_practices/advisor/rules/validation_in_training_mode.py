"""A validation step that puts the module into training mode."""

import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_practices.advisor._copied_hooks import copy_for_hooks
from lightning_practices.advisor._isolation import isolated
from lightning_practices.advisor._kinds import DROPOUTS
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call

_ON = DROPOUTS - {"alpha_dropout", "feature_alpha_dropout"}


@rule(
    "LP147", "warning",
    practice="Validation runs in eval mode",
    measures="the mode of the module in the validation step, and the dropouts and batch norms that"
    " run in training mode",
    healthy="eval mode; networks that give losses in training mode alone; training mode of"
    " dropouts alone, or several passes, as for Monte Carlo dropout",
    source="torch.nn.Module.eval; Lightning calls it before validation, and train() afterwards",
)  # fmt: skip
def validation_in_training_mode(seen: Observation) -> Iterator[Evidence]:
    step = seen.validation_step
    if step is None or not step.modes.get("", False):
        return
    found = [call for call in step.calls if _trains(call) and step.modes.get(call.module, False)]
    passes = Counter(call.module for call in found)
    if found and max(passes.values()) == 1 and _runs_in_eval_mode(seen, step):
        yield Evidence(
            f"the validation step runs in training mode: {found[0]} acts as in training",
            "leave out self.train() in validation: Lightning sets the mode",
            tuple(dict.fromkeys(call.module for call in found if call.module)),
        )


def _runs_in_eval_mode(seen: Observation, step: Step) -> bool:
    """Return whether the validation step logs numbers in eval mode too.

    Detectors of torchvision give losses in training mode alone, and boxes otherwise.
    """
    logged: list[Any] = []
    with isolated(seen.module), copy_for_hooks(seen.module) as model, torch.no_grad():
        for part in model.modules():
            part.training = False
            part.__dict__["train"] = lambda mode=True: model
        model.__dict__["log"] = lambda name, value, *args, **kwargs: logged.append(value)
        model.__dict__["log_dict"] = lambda values, *args, **kwargs: logged.extend(values.values())
        arguments = (step.batch, 0, 0)
        try:
            count = len(inspect.signature(model.validation_step).parameters)
            model.validation_step(*arguments[:count])
        except Exception:  # the user's code, in a mode that it may not expect
            return False
    return all(not isinstance(x, Tensor) or x.numel() == 1 for x in tree_leaves(logged))


def _trains(call: Call) -> bool:
    if call.name in _ON:
        return bool(call.get(2, "training", True)) and float(call.get(1, "p", 0.5)) > 0
    return call.name == "batch_norm" and bool(call.get(5, "training", False))
