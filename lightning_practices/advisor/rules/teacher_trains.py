"""A teacher that learns from its student."""

from collections.abc import Iterator

from lightning_practices._names import some
from lightning_practices.advisor._gradient_paths import parameters_behind
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._parameters import concerned, optimized, outermost
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._signs import terms_of
from lightning_practices.advisor._trace import Call, Loss

_NAME = "teacher"
_SOFT = frozenset({"kl", "cross_entropy"})  # losses whose target is what another network says


@rule(
    "LP132", "warning",
    practice="A teacher doesn't learn from its student",
    measures="trainable parameters of the target of a divergence between two networks, or of a"
    " module that is called a teacher, that get gradients by the comparison with another network"
    " alone, and that an optimizer holds",
    healthy="none; networks that learn from each other have a loss of their own, and a moving"
    " average has no gradients",
    source="Hinton et al., 2015, arXiv:1503.02531; questions on forums about a distillation whose"
    " teacher gets worse",
)  # fmt: skip
def teacher_trains(seen: Observation) -> Iterator[Evidence]:
    held = optimized(seen)
    for step in seen.steps[:1]:
        trained = {
            name for name, x in step.gradients.items() if x is not None and not x.zero
        } & held.keys()
        found = [*_targets(step, trained), *_named(step, trained)]
        for names, call in found[:1]:
            where = some(outermost(seen, sorted(names)))
            yield Evidence(
                f"{where} is a teacher, as its outputs are the target of {call}, but gets"
                f" gradients, and an optimizer holds {len(names)} of its parameters: it moves"
                " towards its student",
                "with torch.no_grad(): around the teacher, teacher.requires_grad_(False) and"
                " teacher.eval(), and an optimizer of the student's parameters alone",
                concerned(seen, sorted(names)),
                {"parameters": len(names)},
            )


def _targets(step: Step, trained: set[str]) -> Iterator[tuple[set[str], Call]]:
    """Yield the parameters that only the target of a soft loss depends on, with the loss."""
    for loss in step.losses:
        if loss.kind not in _SOFT or not (_is_soft(loss) and loss.prediction.requires_grad):
            continue
        student, teacher = (parameters_behind(x) & trained for x in (loss.prediction, loss.target))
        others = {name for root in step.roots for name in parameters_behind(root, loss.call)}
        if student and teacher and not teacher & (student | others):
            yield teacher, loss.call


def _is_soft(loss: Loss) -> bool:
    return loss.target.requires_grad and loss.target.dtype.is_floating_point


def _named(step: Step, trained: set[str]) -> Iterator[tuple[set[str], Call]]:
    """Yield the parameters of a teacher by its name, with a part of the loss that it is in."""
    teacher = {name for name in trained if any(_NAME in part.lower() for part in _parts(name))}
    if not teacher or teacher == trained:
        return
    compared = None
    for root in step.roots:
        for term in terms_of(root):
            names = parameters_behind(term.value) & trained
            if names & teacher and not names - teacher:
                return  # a loss of its own
            if names & teacher:
                compared = term.value.call or compared
    for loss in step.losses:
        if not loss.target.requires_grad and parameters_behind(loss.prediction) & teacher:
            return
    if compared is not None:
        yield teacher, compared


def _parts(name: str) -> list[str]:
    return name.split(".")[:-1]
