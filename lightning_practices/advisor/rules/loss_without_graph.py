"""A loss that depends on no trainable parameter."""

from collections.abc import Iterator

from lightning_practices._names import some
from lightning_practices.advisor._gradient_paths import Paths
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._parameters import outermost, owner, trainable
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP111", "error",
    practice="The loss has a graph",
    measures="whether the loss requires a gradient, and the call at which the graph ends",
    healthy="it does",
    source="questions about: element 0 of tensors does not require grad",
)  # fmt: skip
def loss_without_graph(seen: Observation) -> Iterator[Evidence]:
    names = trainable(seen)
    for root in seen.step.roots if names else ():
        if root.requires_grad:
            continue
        paths = Paths(seen.step)
        call = paths.cut(names)
        layers = [name for name in names if paths.users_of(name)]
        if call is None:
            how, remedy = "no parameter takes part in it", "return the loss of training_step"
        elif any(call in paths.users_of(name) for name in names):
            how = f"{call} and what follows run under no_grad or inference_mode"
            remedy = "remove no_grad from training_step"
        else:
            how, remedy = f"the graph ends at {call}", f"remove {call.name} before the loss"
        modules = [call.module] if call is not None and call.module else []
        inner = [owner(name) for name in layers if owner(name)]
        yield Evidence(
            f"The loss has no graph: {how}; backward raises an error, and nothing is trained",
            remedy,
            tuple(dict.fromkeys([*modules, *outermost(seen, layers), *inner])),
        )


@rule(
    "LP112", "error",
    practice="Some parameters are trainable",
    measures="the number of parameters with requires_grad",
    healthy="above 0, where a step has a loss",
    source="questions about fine-tuning in which the head is frozen with the rest",
)  # fmt: skip
def nothing_is_trainable(seen: Observation) -> Iterator[Evidence]:
    names = list(seen.names.values())
    if names and not trainable(seen) and seen.step.roots:
        if any(root.requires_grad for root in seen.step.roots):
            return  # it trains tensors that aren't registered
        modules = [name for name, _ in seen.module.named_children()]
        yield Evidence(
            f"All {len(names)} parameters ({some(modules)}) have requires_grad=False: nothing is"
            " trained",
            f"self.{modules[-1] if modules else names[-1]}.requires_grad_(True)",
            tuple(modules),
            {"parameters": len(names)},
        )
