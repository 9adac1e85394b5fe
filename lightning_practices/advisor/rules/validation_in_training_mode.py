"""A validation step that puts the module into training mode."""

from collections import Counter
from collections.abc import Iterator

from lightning_practices.advisor._kinds import DROPOUTS
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call

_ON = DROPOUTS - {"alpha_dropout", "feature_alpha_dropout"}


@rule(
    "LP147", "warning",
    practice="Validation runs in eval mode",
    measures="the mode of the module in the validation step, and the dropouts and batch norms that"
    " run in training mode",
    healthy="eval mode; training mode of dropouts alone, or several passes, as for Monte Carlo"
    " dropout",
    source="torch.nn.Module.eval; Lightning calls it before validation, and train() afterwards",
)  # fmt: skip
def validation_in_training_mode(seen: Observation) -> Iterator[Evidence]:
    step = seen.validation_step
    if step is None or not step.modes.get("", False):
        return
    found = [call for call in step.calls if _trains(call) and step.modes.get(call.module, False)]
    passes = Counter(call.module for call in found)
    if found and max(passes.values()) == 1:
        yield Evidence(
            f"the validation step runs in training mode: {found[0]} acts as in training",
            "leave out self.train() in validation: Lightning sets the mode",
            tuple(dict.fromkeys(call.module for call in found if call.module)),
        )


def _trains(call: Call) -> bool:
    if call.name in _ON:
        return bool(call.get(2, "training", True)) and float(call.get(1, "p", 0.5)) > 0
    return call.name == "batch_norm" and bool(call.get(5, "training", False))
