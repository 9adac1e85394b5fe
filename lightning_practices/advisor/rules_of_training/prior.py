"""A loss that stays where predicting the frequencies of the targets would have it."""

from collections.abc import Iterator

from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._run import Run

# The loss by that of the prior. Healthy programs of the tests: below 0.9 after a hundred steps, or
# still falling, as a zero-initialised head (0.995) and recurrent networks on text (1.04).
_STUCK = (0.95, 1.1)
_LOOKS, _STEPS = 4, 60
_SHORT = 100  # steps: shorter fits may not have begun to learn
_LONG = 1000  # steps: language models may stay at the frequencies of words for some hundreds
_SLOW = 1e-4  # updates by weights
_LEAST = 0.01  # loss of the prior: below, there is nothing to learn
_NAMES = {
    "cross_entropy": "cross entropy", "bce": "binary cross entropy", "mse": "squared error",
    "smooth_l1": "smooth absolute error", "huber": "Huber's loss",
}  # fmt: skip


@rule(
    "LP810", "warning",
    practice="The model learns more than the frequencies of its targets",
    measures="the loss, divided by that of predicting the targets' frequencies, or their mean; if"
    " all terms of the loss are of targets from the batch",
    healthy="below 0.9 after a hundred steps, or still falling",
    source="Karpathy, 2019, A recipe for training neural networks: the input-independent baseline",
)  # fmt: skip
def stuck_at_the_prior(run: Run) -> Iterator[Evidence]:
    looks = run.last_looks(_LOOKS, _STEPS)
    if not looks or run.optimizers > 1 or run.steps < (_SHORT if run.is_over else _LONG):
        return
    if not run.is_of_data:
        return  # other terms may be learnt, and targets that move never
    found = run.priors
    stuck = {
        key: (value, prior)
        for key, (value, prior) in found.items()
        if prior > _LEAST and _STUCK[0] * prior <= value <= _STUCK[1] * prior
    }
    ratios = [look.typical_ratio for look in looks]
    if len(stuck) < len(found) or run.falls or max(ratios) < _SLOW:
        return  # it has come down to the prior and goes on, or the learning rate explains it
    for (kind, _), (value, prior) in stuck.items():
        yield Evidence(
            f"{_NAMES[kind]} stays at {value:.3g}, and predicting the targets' frequencies alone"
            f" gives {prior:.3g}: the model uses nothing of its input",
            "advisor.overfit_batch(module, data) tells whether it can learn at all; look whether"
            " inputs and targets belong together, and whether gradients reach the first layer",
            numbers={"loss": value, "prior": prior},
        )
