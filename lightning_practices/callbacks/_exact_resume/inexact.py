"""Why a fit that resumes in mid-epoch may train the rest of the epoch otherwise."""

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher

from lightning_practices._packages import either
from lightning_practices.callbacks._exact_resume.moments import loaders_of
from lightning_practices.callbacks._exact_resume.reasons import why_inexact


def reasons(trainer: Trainer, batches: int) -> list[str]:
    """Return why a fit that resumes after ``batches`` batches of an epoch may be another."""
    loop = trainer.fit_loop
    combined = loaders_of(trainer)
    if combined is None:
        kind = type(loop._combined_loader).__name__
        return [
            f"{kind} combines the loaders, so the epoch's data starts from its beginning: use"
            " CombinedLoader"
        ]
    found = [why_inexact(one.loader) for one in combined.loaders]
    if isinstance(loop._data_fetcher, either(_DataLoaderIterDataFetcher)):
        found.append(
            "training_step(dataloader_iter) may draw batches ahead, which aren't counted: use"
            " training_step(batch)"
        )
    accumulated = trainer.accumulate_grad_batches
    if trainer.lightning_module.automatic_optimization and batches % accumulated:
        found.append(
            f"{batches} batches of the epoch are trained, which is no multiple of"
            f" accumulate_grad_batches={accumulated}, and a checkpoint doesn't hold gradients: save"
            " after an optimizer step"
        )
    return list(dict.fromkeys(reason for reason in found if reason))
