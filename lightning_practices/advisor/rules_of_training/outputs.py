"""Outputs of earlier epochs in the metrics of later ones."""

from collections.abc import Iterator

from lightning_practices._names import some
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._run import Run

_EPOCHS = 2


@rule(
    "LP822", "warning",
    practice="Outputs of an epoch are cleared before the next one",
    measures="entries of lists and tensors of the module and of callbacks, at the first batch of an"
    " epoch and at its end; whether the hook of the epoch's end reads them",
    healthy="cleared once per epoch; histories of one number per step or epoch",
    source="Lightning's guide from 1.9 to 2.0: outputs are kept in an attribute, and cleared",
)  # fmt: skip
def outputs_of_earlier_epochs(run: Run) -> Iterator[Evidence]:
    for split in ("validation", "training"):
        kept = [one for one, epochs in run.kept.items() if epochs >= _EPOCHS and one.split == split]
        if kept:
            names = [f"{one.owner}.{one.name}" for one in kept]
            hook = f"on_{'train' if split == 'training' else split}_epoch_end"
            yield Evidence(
                f"{some(names)} still have the outputs of earlier {split} epochs, and {hook} reads"
                f" all of them: what it shows is that of all epochs so far, and memory grows",
                f"empty them at the end of {hook}, as by self.{kept[0].name}.clear()",
                numbers={name: one.entries for name, one in zip(names, kept, strict=True)},
            )
