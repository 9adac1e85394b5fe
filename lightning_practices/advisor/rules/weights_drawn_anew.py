"""Weights that are drawn anew, and layers that are made anew, while a fit runs."""

from collections.abc import Iterator

from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_practices._names import count, some
from lightning_practices.advisor._isolation import isolated
from lightning_practices.advisor._observation import Observation, once
from lightning_practices.advisor._parameters import concerned, has_gradient, owner
from lightning_practices.advisor._reset_weights import replaced_by
from lightning_practices.advisor._rule import Evidence, rule

_START = "on_train_epoch_start"
_SOURCE = "questions on forums about a loss that starts again in each epoch, or doesn't fall"


@rule(
    "LP122", "error",
    practice="Trained weights are kept",
    measures="the correlation of all trained matrices after an optimizer's step with those at the"
    " next loss, after the last step, and before and after on_train_epoch_start of a later epoch",
    healthy="near 1, also with clamps, norms and averages of weights; new random numbers before the"
    " first step alone",
    source=_SOURCE,
)  # fmt: skip
def weights_drawn_anew(seen: Observation) -> Iterator[Evidence]:
    trained = _trained(seen)
    for when, names in _replaced(seen).items():
        if trained and names >= trained:
            yield Evidence(
                f"all trained matrices ({some(sorted(trained))}) are other random numbers {when}:"
                " what the steps before have learnt is lost",
                "initialise weights in __init__ alone: remove reset_parameters(), apply(init) and"
                " torch.nn.init from steps, forward and the hooks of epochs",
                concerned(seen, sorted(trained)),
                {"matrices": len(trained)},
            )
            return


@rule(
    "LP123", "hint",
    practice="Weights that an optimizer holds are kept",
    measures="as LP122, for some of the trained matrices",
    healthy="1; layers that are random on purpose, as for augmentation, are better frozen",
    source=_SOURCE,
    explained_by=("LP122",),
)  # fmt: skip
def some_weights_drawn_anew(seen: Observation) -> Iterator[Evidence]:
    trained = _trained(seen)
    for when, names in _replaced(seen).items():
        if found := sorted(names & trained):
            yield Evidence(
                f"{some(found)} {'is' if len(found) == 1 else 'are'} other random numbers {when},"
                " in spite of the optimizer that holds them: they don't learn",
                "initialise weights in __init__ alone, or requires_grad_(False) if they are random"
                " on purpose",
                concerned(seen, found),
                {"matrices": len(found)},
            )
            return


@rule(
    "LP124", "error",
    practice="Layers are made before the fit",
    measures="parameters that two steps have made anew, that the loss reaches and that no"
    " optimizer holds",
    healthy="none; layers that are added in a fit are added to an optimizer",
    source="questions on forums about a layer that forward makes, as its size depends on the input",
)  # fmt: skip
def layers_made_in_steps(seen: Observation) -> Iterator[Evidence]:
    held = {id(p) for o in seen.optimizers for g in o.param_groups for p in g["params"]}
    steps = [step for step in seen.steps if step.roots]
    if len(steps) < 2:
        return
    first, last = steps[0].made, steps[-1].made
    names = [name for name, x in sorted(last.items()) if name in first and id(x) not in held]
    again = [name for name in names if last[name] is not first[name]]
    if names and all(id(first[name]) not in held for name in names):
        how = "a step makes anew each time" if again else "the first step makes"
        yield Evidence(
            f"{count(len(names), 'parameter')} ({some(names)}), which the loss reaches,"
            f" {how}: no optimizer holds them, so that they don't learn",
            "make layers in __init__; nn.LazyLinear(out_features) takes its input's size from the"
            " first batch",
            tuple(dict.fromkeys(owner(name) for name in names if owner(name))),
            {"parameters": len(names)},
        )


def _trained(seen: Observation) -> set[str]:
    return {name for name in seen.resets.watched if has_gradient(seen.steps, name)}


@once
def _replaced(seen: Observation) -> dict[str, set[str]]:
    """Return the weights that were replaced, by when."""
    found = {
        "between an optimizer's step and the next loss": set(seen.resets.counts),
        "after the last step of an epoch": seen.resets.at_end,
    }
    if is_overridden(_START, seen.module) and seen.observer.current_epoch > 0:
        with isolated(seen.module):
            found["after on_train_epoch_start"] = replaced_by(seen.module, _START, _trained(seen))
    return found
