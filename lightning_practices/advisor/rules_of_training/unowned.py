"""Parameters that are unfrozen during the fit, and given to no optimizer."""

from collections.abc import Iterator

from lightning_practices._names import count, some
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._run import Run

_LOOKS = 2


@rule(
    "LP821", "warning",
    practice="Parameters that are unfrozen later are in an optimizer",
    measures="parameters that get gradients, and were frozen or not there when the fit began; the"
    " optimizers that have them; whether they change",
    healthy="none outside of all optimizers that stays as it was",
    source="Lightning, BaseFinetuning: unfreeze_and_add_param_group",
)  # fmt: skip
def unfrozen_without_optimizer(run: Run) -> Iterator[Evidence]:
    names = [name for name, looks in run.unowned.items() if looks >= _LOOKS]
    if names:
        part = names[0].rpartition(".")[0].partition(".")[0]
        parameters = f"self.{part}.parameters()" if part else f"[self.{names[0]}]"
        yield Evidence(
            f"{count(len(names), 'parameter')} that got gradients only after the fit began"
            f" ({some(names)}) stay as they were: no optimizer has them",
            f'self.optimizers().add_param_group({{"params": {parameters}}}) where they are'
            " unfrozen; or give all parameters to the optimizer from the start, as those without a"
            " gradient stay as they are",
            tuple(names),
            {"parameters": len(names)},
        )
