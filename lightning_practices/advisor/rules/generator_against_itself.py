"""A generator that is trained to be recognised."""

from collections.abc import Iterator
from itertools import product

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._signs import sign_in_loss
from lightning_practices.advisor._trace import Value

_KINDS = frozenset({"bce", "bce_logits", "mse"})
_APART = 0.5  # of the labels; smoothed labels are still apart by more


@rule(
    "LP265", "error",
    practice="A generator asks its critic for the label of real data",
    measures="constant targets of three losses of one critic: on real data, on detached generated"
    " data, and on generated data with a gradient",
    healthy="the last is the first",
    source="Goodfellow et al., 2014, arXiv:1406.2661: the generator maximises log D(G(z))",
)  # fmt: skip
def generator_against_itself(seen: Observation) -> Iterator[Evidence]:
    found = [
        (loss, label)
        for loss in seen.step.losses
        if loss.kind in _KINDS and (label := _label(loss.target)) is not None
    ]
    for (fake, low), (own, asked) in product(found, repeat=2):
        critic = _parameters(fake.prediction, live=True)
        generator = _parameters(fake.prediction) - critic
        trained = _parameters(own.prediction, live=True) & generator
        reals = [
            label
            for real, label in found
            if _parameters(real.prediction) == critic and abs(label - low) > _APART
        ]
        # A minimax generator maximises the critic's loss: the sign is negative there.
        is_made_smaller = sign_in_loss(seen.step, own.call.output) >= 0
        is_asked_for_fake = is_made_smaller and abs(asked - low) < _APART / 2
        if trained and reals and is_asked_for_fake and critic <= _parameters(own.prediction):
            yield Evidence(
                f"{own.call} trains the generator towards {asked:g}, which is the critic's label of"
                f" generated data in {fake.call}; real data has {reals[0]:g}: the generator learns"
                " to be recognised",
                f"torch.full_like(prediction, {reals[0]:g}) as the target of the generator's loss",
                tuple(sorted({name.rpartition(".")[0] for name in trained})),
                {"asked": asked, "real": reals[0]},
            )
            return


def _label(target: Value) -> float | None:
    """Return the value of a constant target."""
    x = target.tensor
    if x is None or target.requires_grad or not x.numel() or (target.is_data and x.numel() == 1):
        return None
    spread = float(x.float().max() - x.float().min())
    return float(x.float().mean()) if spread < _APART else None


def _parameters(value: Value, *, live: bool = False) -> set[str]:
    """Return the parameters that a value depends on, or those on ways with a gradient."""
    waiting, seen, names = [value], set(), set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen or (live and not value.requires_grad):
            continue
        seen.add(id(value))
        if value.parameter is not None:
            names.add(value.parameter)
        waiting += value.call.inputs if value.call is not None else ()
    return names
