"""Gradients that are added to old ones, and clipping of every step."""

from collections.abc import Iterator

from lightning_practices._names import count
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._run import Run

_CLIPPED = 0.999  # the norm after by the norm before
_SHARE = 0.95
_LOOKS = 8
_EARLY = 20  # steps at the start, in which gradients are large


@rule(
    "LP815", "error",
    practice="Gradients are zeroed after each step",
    measures="whether a backward pass adds to the gradients that the step before had used",
    healthy="never",
    source="torch.optim.Optimizer.zero_grad; Lightning, manual optimization",
)  # fmt: skip
def stale_gradients(run: Run) -> Iterator[Evidence]:
    if run.stale:
        of = f" of {count(len(run.stale), 'optimizer')}" if run.optimizers > 1 else ""
        yield Evidence(
            f"gradients{of} were added to those that the step before had used already",
            "optimizer.zero_grad() before self.manual_backward(loss)",
            numbers={f"optimizer {place}": 1.0 for place in run.stale},
        )


@rule(
    "LP816", "hint",
    practice="Clipping is for rare large gradients",
    measures="share of the looks in which clipping made the norm of the gradients smaller",
    healthy="up to 95 %; a hint, since recipes may clip each step on purpose",
    source="Pascanu et al., 2013, On the difficulty of training recurrent neural networks",
)  # fmt: skip
def always_clipped(run: Run) -> Iterator[Evidence]:
    norms = [one for look in run.looks if look.step >= _EARLY for one in look.norms.values()]
    clipped = [one for one in norms if one.after < _CLIPPED * one.before]
    if len(norms) >= _LOOKS and len(clipped) > _SHARE * len(norms):
        usual = sorted(one.before for one in norms)[len(norms) // 2]
        yield Evidence(
            f"gradients were clipped in {len(clipped)} of {len(norms)} looks; their usual norm is"
            f" {usual:.3g}: the threshold sets the size of each step",
            f"a threshold above the usual norm, such as GradientClipping({2 * usual:.2g}), or"
            " GradientClipping(percentile=90)",
            numbers={"share": len(clipped) / len(norms), "norm": usual},
        )
