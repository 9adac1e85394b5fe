"""Modules that are left in eval mode during the fit."""

from collections.abc import Iterator

from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._run import Run

_LOOKS = 2


@rule(
    "LP820", "warning",
    practice="What needs eval mode gives training mode back",
    measures="the mode of the parts that are trained, in the backward passes of the looks, by that"
    " at the start of the fit",
    healthy="training mode; eval mode of frozen parts, of batch norms alone, of a part of what an"
    " optimizer trains, or from the first step on",
    source="questions on forums about callbacks that draw samples; Lightning: only its own loops"
    " put the modes back",
)  # fmt: skip
def left_in_eval_mode(run: Run) -> Iterator[Evidence]:
    for name, looks in run.in_eval_mode.items():
        if looks >= _LOOKS:
            shown = name or "the module"
            path = f"pl_module.{name}" if name else "pl_module"
            yield Evidence(
                f"{shown} was in training mode when the fit began, and trains in eval mode now, as"
                " a hook or a callback calls eval(): nothing is dropped, and batch norms use"
                " statistics that no batch changes any more",
                f"{path}.train() after what needs eval mode, at the end of the hook",
                (name,),
                {"looks": looks},
            )
