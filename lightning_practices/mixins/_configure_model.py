"""The strategy that needs a ``configure_model`` of the user's."""

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_practices._packages import either

_OURS = __name__.rpartition(".")[0]


def refuse_unparallelised(module: Any) -> None:
    """Raise the error of ModelParallelStrategy if only mixins override ``configure_model``.

    Raises:
        TypeError: If this strategy runs the module, and no class but this package's mixins and
            Lightning's own override the hook.
    """
    trainer = module._trainer
    if trainer is None or not isinstance(trainer.strategy, either(ModelParallelStrategy)):
        return
    theirs = (_OURS, "lightning.pytorch.", "pytorch_lightning.")
    owners = [base for base in type(module).__mro__ if "configure_model" in vars(base)]
    if all(f"{owner.__module__}.".startswith(theirs) for owner in owners):
        raise TypeError(
            f"{type(module).__name__} must override configure_model() and apply the parallelism "
            "there: under ModelParallelStrategy nothing else does, and ranks would drift apart"
        )
