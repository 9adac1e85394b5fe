"""Weight decay of parameters that shouldn't be decayed, or in the wrong form."""

from collections.abc import Iterator

from torch.optim import Adam, Adamax, NAdam, RAdam

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP551", "hint",
    practice="Norms and biases are not decayed",
    measures="parameters of one dimension in groups with weight decay",
    healthy="none",
    source="He et al., 2019, arXiv:1812.01187, section 3.1",
)  # fmt: skip
def norms_and_biases_decayed(seen: Observation) -> Iterator[Evidence]:
    decayed = [
        (float(group["weight_decay"]), optimizer)
        for optimizer in seen.optimizers
        for group in getattr(optimizer, "param_groups", ())
        if group.get("weight_decay")
        for p in group["params"]
        if p.dim() <= 1
    ]
    if decayed:
        decay, optimizer = decayed[0]
        name = type(optimizer).__name__.removeprefix("Lightning")
        yield Evidence(
            f"{len(decayed)} of the decayed parameters are biases or weights of norms",
            f"{name}(lightning_practices.optim.parameter_groups(self, weight_decay={decay:g}))",
            numbers={"parameters": len(decayed)},
        )


@rule(
    "LP552", "hint",
    practice="Adam's weight decay is decoupled from the gradient",
    measures="weight_decay of Adam, NAdam, RAdam and Adamax",
    healthy="0, or decoupled_weight_decay=True",
    source="Loshchilov and Hutter, 2019, arXiv:1711.05101",
)  # fmt: skip
def coupled_weight_decay(seen: Observation) -> Iterator[Evidence]:
    for optimizer in seen.optimizers:
        if not isinstance(optimizer, Adam | NAdam | RAdam | Adamax):
            continue
        values = {
            group["weight_decay"]
            for group in optimizer.param_groups
            if group["weight_decay"] and not group.get("decoupled_weight_decay", False)
        }
        if values:
            name = type(optimizer).__name__.removeprefix("Lightning")
            yield Evidence(
                f"{name} adds weight_decay={max(values):g} to the gradient, which it then divides"
                " by the gradient's size: weights with large gradients are decayed less",
                "torch.optim.AdamW",
                numbers={"weight_decay": max(values)},
            )
