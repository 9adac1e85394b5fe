"""Gradients that are clipped twice, or can't be clipped."""

from collections.abc import Iterator

from lightning_practices.advisor._fit import mentions
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule

_FUNCTIONS = ("clip_grad_norm_", "clip_grad_value_", "clip_grad_norm", "clip_grad_adaptive_")


@rule(
    "LP631", "warning",
    practice="Gradients are clipped once",
    measures="gradient_clip_val of the Trainer, callbacks that clip, clipping in the module's code,"
    " and what its configure_gradient_clipping does to large gradients",
    healthy="one of them",
    source="Pascanu et al., 2013, arXiv:1211.5063",
)  # fmt: skip
def clipped_twice(seen: Observation) -> Iterator[Evidence]:
    value = None if seen.trainer is None else seen.trainer.gradient_clip_val
    found = [f"gradient_clip_val={value:g} of the Trainer"] if value else []
    found += [
        f"the callback {type(one).__name__}"
        for one in seen.callbacks
        if "clipping" in (name := type(one).__name__.lower()) or "gradientclip" in name
        if not getattr(one, "serves_module", False)
    ]
    # Lightning calls configure_gradient_clipping in place of its own clipping.
    if mentions(type(seen.module), *_FUNCTIONS, apart_from=("configure_gradient_clipping",)):
        found.append(f"the code of {type(seen.module).__name__}")
    if len(found) > 1:
        yield Evidence(
            f"gradients are clipped by {' and by '.join(found)}: the lower threshold counts",
            "keep one of them",
        )
    for one in seen.clipped_twice[:1]:
        yield Evidence(
            f"configure_gradient_clipping of {type(seen.module).__name__} clips the norm of the"
            f" same gradients twice: to {one.own:.3g}, and by self.clip_gradients to"
            f" {one.given:.3g}. The lower threshold counts",
            "keep one of them",
            numbers={"own": one.own, "given": one.given},
        )


@rule(
    "LP632", "error",
    practice="Under manual optimization the module clips by itself",
    measures="gradient_clip_val of the Trainer and automatic_optimization of the module",
    healthy="no gradient_clip_val under manual optimization",
    source="Lightning's guide to manual optimization",
)  # fmt: skip
def clipping_of_manual_optimization(seen: Observation) -> Iterator[Evidence]:
    value = None if seen.trainer is None else seen.trainer.gradient_clip_val
    if value and not seen.module.automatic_optimization:
        yield Evidence(
            f"the Trainer has gradient_clip_val={value:g} and optimization is manual: the fit"
            " fails, since Lightning can't clip here",
            f"self.clip_gradients(optimizer, gradient_clip_val={value:g},"
            ' gradient_clip_algorithm="norm") before optimizer.step()',
        )
