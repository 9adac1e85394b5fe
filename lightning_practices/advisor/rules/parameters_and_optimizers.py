"""Parameters in no optimizer, in two, or of another module."""

from collections import Counter
from collections.abc import Iterator

from lightning_practices._names import count, some
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._parameters import (
    concerned,
    has_gradient,
    is_moved,
    optimized,
    outermost,
    owner,
    shares_with_user,
    trainable,
)
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP105", "warning",
    practice="An optimizer holds each trainable parameter",
    measures="parameters with a gradient that no optimizer holds",
    healthy="none; in eval mode they may be left out on purpose",
    source="questions about a loss that stays high as a layer was added after its optimizer",
)  # fmt: skip
def in_no_optimizer(seen: Observation) -> Iterator[Evidence]:
    yield from _in_no_optimizer(seen, mode=True)


@rule(
    "LP115", "hint",
    practice="Parameters that no optimizer holds are frozen",
    measures="parameters in eval mode with a gradient that no optimizer holds",
    healthy="none",
    source="torch's notes on autograd: frozen parameters save the backward pass",
)  # fmt: skip
def left_out_in_eval_mode(seen: Observation) -> Iterator[Evidence]:
    yield from _in_no_optimizer(seen, mode=False)


def _in_no_optimizer(seen: Observation, mode: bool) -> Iterator[Evidence]:
    places = optimized(seen)
    if shares_with_user(seen) or not (seen.optimizers or seen.module.automatic_optimization):
        return
    names = [
        name
        for name in trainable(seen)
        if name not in places
        and has_gradient(seen.steps, name)
        and seen.step.modes.get(owner(name), True) == mode
        and not is_moved(seen, name)
    ]
    if not names:
        return
    modules = some(outermost(seen, names))
    why = "" if seen.optimizers else ": configure_optimizers returned none"
    yield Evidence(
        f"No optimizer holds {count(len(names), 'parameter')} of {modules} that the loss reaches"
        f"{why}: the values stay as they are",
        "pass self.parameters() to the optimizer, once all layers are made" if mode
        else f"freeze {modules} by requires_grad_(False)",
        concerned(seen, names),
        {"parameters": len(names)},
    )  # fmt: skip


@rule(
    "LP108", "error",
    practice="Optimizers hold the module's own parameters",
    measures="tensors of optimizers that the module doesn't have and the loss doesn't reach",
    healthy="none",
    source="questions about fine-tuning in which the head is replaced after the optimizer is made",
)  # fmt: skip
def optimizer_of_other_parameters(seen: Observation) -> Iterator[Evidence]:
    reached = {id(x) for step in seen.steps for x in [*step.unregistered, *step.made.values()]}
    places = optimized(seen)
    for place, optimizer in enumerate(seen.optimizers):
        others = [
            p
            for group in optimizer.param_groups
            for p in group["params"]
            if p.requires_grad and id(p) not in seen.names and id(p) not in seen.originals
            and id(p) not in reached
        ]  # fmt: skip
        if not others or not any(place in step.stepped for step in seen.steps):
            continue
        missing = [name for name in trainable(seen) if name not in places]
        shapes = some([str(tuple(p.shape)) for p in others])
        yield Evidence(
            f"{type(optimizer).__name__} holds {count(len(others), 'tensor')} ({shapes}) that"
            " aren't in the module or its loss, as the optimizer was made before a layer was"
            f" replaced; it lacks {some(missing) or 'none of the module'}",
            "make the optimizer in configure_optimizers, of self.parameters()",
            concerned(seen, missing),
            {"tensors": len(others)},
        )


@rule(
    "LP106", "warning",
    practice="One optimizer holds each parameter, once",
    measures="parameters twice in an optimizer, or in an optimizer of all parameters and another,"
    " or in two optimizers of all that step after losses of their own",
    healthy="each once; a part that two losses share may be in two optimizers",
    source="torch.optim.Optimizer warns of duplicates; questions about GANs whose discriminator's"
    " optimizer got self.parameters()",
)  # fmt: skip
def in_two_optimizers(seen: Observation) -> Iterator[Evidence]:
    every = set(trainable(seen))
    for optimizer in seen.optimizers:
        held = [seen.names.get(id(p)) for g in optimizer.param_groups for p in g["params"]]
        twice = [name for name, number in Counter(held).items() if name and number > 1]
        if twice:
            yield Evidence(
                f"{type(optimizer).__name__} holds {some(twice)} twice, and updates them twice in"
                " each step",
                "pass each parameter once, such as by self.parameters(), which leaves out copies",
                concerned(seen, twice),
                {"parameters": len(twice)},
            )
    for shared, first, second in _shared(seen):
        larger = max((first, second), key=lambda one: len(one[1]))
        if _takes_turns(seen, shared, first, second):
            yield Evidence(
                f"Optimizers {first[0]} and {second[0]} both hold all"
                f" {count(len(shared), 'parameter')} of the module, and both step in a training"
                " step, after losses of their own: each loss moves what the other one trains",
                "give each optimizer the parameters alone that its loss has to train, such as"
                " Adam(self.generator.parameters()) and Adam(self.discriminator.parameters())",
                concerned(seen, sorted(shared)),
                {"parameters": len(shared)},
            )
        if larger[1] == every and len(shared) < len(every):
            rest = outermost(seen, sorted(shared))
            yield Evidence(
                f"Optimizers {first[0]} and {second[0]} both hold"
                f" {count(len(shared), 'parameter')} of {some(rest)}: optimizer {larger[0]} holds"
                " all of the module, so that its loss moves these too",
                f"pass to optimizer {larger[0]} the parameters alone that its loss has to train",
                concerned(seen, sorted(shared)),
                {"parameters": len(shared)},
            )


@rule(
    "LP116", "hint",
    practice="One optimizer holds each parameter",
    measures="parameters that two optimizers hold",
    healthy="none, but for parts that two losses share, as in adversarial autoencoders",
    source="torch.optim: each optimizer keeps a state of its own for each parameter",
)  # fmt: skip
def in_two_optimizers_perhaps(seen: Observation) -> Iterator[Evidence]:
    every = set(trainable(seen))
    for shared, first, second in _shared(seen):
        if _takes_turns(seen, shared, first, second):
            continue
        if every not in (first[1], second[1]) or shared == every:
            yield Evidence(
                f"Optimizers {first[0]} and {second[0]} both hold"
                f" {count(len(shared), 'parameter')} of {some(outermost(seen, sorted(shared)))}",
                "keep each parameter in one optimizer, unless two losses train it on purpose",
                concerned(seen, sorted(shared)),
                {"parameters": len(shared)},
            )


_Held = tuple[int, set[str]]


def _takes_turns(seen: Observation, shared: set[str], first: _Held, second: _Held) -> bool:
    """Whether two optimizers of all parameters both step in a step that differentiates twice."""
    both = {first[0], second[0]}
    return shared == set(trainable(seen)) and any(
        len(step.roots) > 1 and both <= step.stepped for step in seen.steps
    )


def _shared(seen: Observation) -> Iterator[tuple[set[str], _Held, _Held]]:
    """Yield each pair of optimizers that share trainable parameters, with these."""
    held: list[_Held] = []
    every = set(trainable(seen))
    for place, optimizer in enumerate(seen.optimizers):
        names = {seen.names.get(id(p), "") for g in optimizer.param_groups for p in g["params"]}
        held.append((place, names & every))
    for place, first in enumerate(held):
        for second in held[place + 1 :]:
            if shared := first[1] & second[1]:
                yield shared, first, second


@rule(
    "LP117", "error",
    practice="The learning rate isn't 0",
    measures="the learning rates of the groups, before schedules, at the first step and later",
    healthy="above 0; 0 in some of several groups, or at the start of a warmup",
    source="TheDeepChecker (Ben Braiek and Khomh, 2023): parameters that training doesn't change",
)  # fmt: skip
def learning_rate_is_zero(seen: Observation) -> Iterator[Evidence]:
    for place, optimizer in enumerate(seen.optimizers):
        rates = [g.get("initial_lr", g.get("lr", 1.0)) for g in optimizer.param_groups]
        scheduled = any(config.scheduler.optimizer is optimizer for config in seen.schedulers)
        held = [name for name, its in optimized(seen).items() if place in its]
        trained = [name for name in held if name in trainable(seen)]
        if any(float(rate) != 0 for rate in rates) or (scheduled and "initial_lr" not in
                                                       optimizer.param_groups[0]):  # fmt: skip
            continue
        if trained and not any(is_moved(seen, name) for name in trained):
            yield Evidence(
                f"The learning rate of {type(optimizer).__name__} is 0 in"
                f" {count(len(rates), 'group')}: the parameters of"
                f" {some(outermost(seen, trained))} don't move",
                "lr=1e-3, to begin with",
                concerned(seen, trained),
                {"learning_rate": 0.0},
            )
