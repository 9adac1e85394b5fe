"""Early stopping that can't act within the fit."""

from collections.abc import Iterator

from lightning_practices.advisor._fit import fit_of, validations_of
from lightning_practices.advisor._monitors import early_stops_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP613", "hint",
    practice="The fit is longer than the patience of early stopping",
    measures="patience against the validations of the fit",
    healthy="patience below the number of validations",
    source="lectures S2 to S4; Prechelt, Early stopping - but when?, 1998",
    explained_by=("LP612",),
)  # fmt: skip
def patience_longer_than_fit(seen: Observation) -> Iterator[Evidence]:
    checks = validations_of(seen, fit_of(seen))
    for monitor in early_stops_of(seen):
        if checks is not None and monitor.owner.patience >= checks:
            yield Evidence(
                f"{monitor.title} waits for {monitor.owner.patience} checks without improvement,"
                f" and the fit has {checks}: it never stops training",
                f"patience={max(checks // 5, 1)}, or a longer fit",
                numbers={"patience": monitor.owner.patience, "checks": checks},
            )


@rule(
    "LP625", "hint",
    practice="Early stopping monitors the validation split",
    measures="the beginning of the monitored name, where the fit has a validation split",
    healthy="a value of the validation split",
    source="lectures S2 to S4; Prechelt, Early stopping - but when?, 1998",
)  # fmt: skip
def training_value_monitored(seen: Observation) -> Iterator[Evidence]:
    for monitor in early_stops_of(seen):
        if monitor.name.startswith("train") and seen.validation_step is not None:
            yield Evidence(
                f"{monitor.title} monitors {monitor.name!r}, which goes on improving while the"
                " model overfits",
                'monitor="val_loss"',
            )


@rule(
    "LP614", "hint",
    practice="A long fit has early stopping or checkpoints",
    measures="the epochs of the fit and its callbacks",
    healthy="under 1000 epochs",
    source="lectures S2 to S4",
)  # fmt: skip
def long_fit_without_end(seen: Observation) -> Iterator[Evidence]:
    fit = fit_of(seen)
    is_endless = fit.is_known and fit.epochs is None and fit.steps is None
    if (is_endless or (fit.epochs or 0) >= _LONG) and not fit.may_stop:
        length = "no limit" if fit.epochs is None else f"{fit.epochs} epochs"
        yield Evidence(
            f"the fit has {length} and nothing that stops it",
            'Trainer(callbacks=[EarlyStopping("val_loss", patience=10)])',
        )


_LONG = 1000  # epochs, also those of a Trainer without any limit
