"""Metrics whose state is that of another epoch, or of another split."""

from collections.abc import Iterator

from torchmetrics import Metric

from lightning_practices._names import some
from lightning_practices.advisor._fit import mentions
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP661", "warning",
    practice="A metric is reset after each epoch",
    measures="metrics that hold samples after an epoch, in a module that computes and doesn't reset"
    " them",
    healthy="none; Lightning resets the metrics that are logged themselves",
    source="torchmetrics, TorchMetrics in PyTorch Lightning: reset when compute is called by hand",
)  # fmt: skip
def metric_without_reset(seen: Observation) -> Iterator[Evidence]:
    owners = [type(seen.module), *map(type, seen.callbacks)]
    if not mentions(owners[0], "compute") or any(mentions(one, "reset") for one in owners):
        return
    logged = {id(metric) for split in _logged(seen) for metric in split}
    kept = [
        name
        for name, part in seen.modules.items()
        if isinstance(part, Metric) and part.update_called and id(part) not in logged
    ]
    if kept:
        yield Evidence(
            f"the samples of {some(kept)} are still in it after the epoch: the next epoch's value"
            " is that of all epochs so far",
            f"self.log(name, self.{kept[0]}), as Lightning resets what is logged itself; or"
            f" self.{kept[0]}.reset() after compute()",
            tuple(kept),
        )


@rule(
    "LP662", "warning",
    practice="Training and validation have a metric each",
    measures="metrics that both steps log, the training step for the epoch, and metrics that hold"
    " samples of training when validation adds its own",
    healthy="none; a metric that compares two sets of samples, such as FID",
    source="torchmetrics, common pitfalls: a metric object for each split",
)  # fmt: skip
def metric_of_two_splits(seen: Observation) -> Iterator[Evidence]:
    train, val = _logged(seen)
    shared = [one for one in train if any(one is other for other in val)]
    for metric in shared:
        name = next((name for name, part in seen.modules.items() if part is metric), "")
        yield Evidence(
            f"both steps log {name}: validation runs before the train epoch ends, and resets it, so"
            " that the train epoch's value is lost",
            f"self.train_{name} and self.val_{name}, each a metric of its own: metric.clone()",
            (name,) if name else (),
        )
    for name in seen.continued_metrics:
        if not any(seen.modules.get(name) is one for one in shared):
            yield Evidence(
                f"{name} holds samples of training when validation begins, and validation adds its"
                " own: its value is of both splits",
                f"self.train_{name} and self.val_{name}, each a metric of its own: metric.clone();"
                f" or self.{name}.reset() in on_validation_epoch_start",
                (name,),
            )


def _logged(seen: Observation) -> tuple[list[Metric], list[Metric]]:
    """Return the metrics that are logged for the epoch by training and by validation."""
    epoch = seen.observer.fit_loop.epoch_loop
    found = [
        [
            result.value
            for result in (loop._results.result_metrics if loop._results is not None else [])
            if isinstance(result.value, Metric) and result.meta.on_epoch
        ]
        for loop in (epoch, epoch.val_loop)
    ]
    return found[0], found[1]
