"""Freezing of all that a phase doesn't train, under DDP and FSDP2 too."""

from collections.abc import Collection, Iterator

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from lightning_practices._names import plain_name
from lightning_practices.callbacks._unfreezing.plan import Plan
from lightning_practices.surgery import freeze, unfreeze


class Freezing:
    """Keeps the parameters of a module frozen that a phase doesn't train.

    Args:
        module: The module, nothing of which is frozen by this.
        plan: What the phases train.
        dropout: Whether dropout stays on in what is frozen.
    """

    def __init__(self, module: LightningModule, plan: Plan, dropout: bool) -> None:
        self._module = module
        self._plan = plan
        self._dropout = dropout
        self._parts: list[str] = []  # that are frozen
        self._flags: dict[str, bool] = {}  # as they were set
        self._reduced = self._trainable()  # of these the wrapper reduces gradients

    def apply(self, trained: Collection[str]) -> list[str]:
        """Freeze all but ``trained``.

        Returns:
            What someone else has frozen or unfrozen since the last time, and is left so.
        """
        for module in self._module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what is gathered has flags of its own
        parameters = {plain_name(name): p for name, p in self._module.named_parameters()}
        present = {name: p.requires_grad for name, p in parameters.items()}
        others = [name for name, flag in self._flags.items() if present[name] is not flag]
        self.undo()
        frozen = present.keys() - {*trained} - self._plan.theirs
        self._parts = [*_outermost(self._module, "", frozen, self._plan.theirs)]
        for block in self._plan.blocks:  # modules without parameters too
            if not {*map(plain_name, block.parameters)} - self._plan.theirs - frozen:
                self._parts += block.modules
        freeze(self._module, self._parts, dropout=self._dropout)
        for name in others:
            parameters[name].requires_grad_(present[name])
        self._flags = {name: p.requires_grad for name, p in parameters.items()}
        return others

    def undo(self) -> None:
        """Make the module as it was, but for its weights."""
        unfreeze(self._module, self._parts)
        self._parts, self._flags = [], {}

    def rewrap(self, trainer: Trainer) -> None:
        """Let DDP reduce the gradients of what is trainable now, and of nothing else.

        A ``DistributedDataParallel`` knows only what was trainable when it was made. Every rank has
        to call this.
        """
        trainable = self._trainable()
        strategy = trainer.strategy
        if trainable == self._reduced or not isinstance(strategy.model, DistributedDataParallel):
            return
        self._reduced = trainable
        strategy.model = strategy.lightning_module  # the reducer goes, and its hooks with it
        if hasattr(strategy, "_pl_static_graph_delay_done"):
            strategy._pl_static_graph_delay_done = False  # a new graph
        assert isinstance(strategy, DDPStrategy)
        strategy.configure_ddp()

    def _trainable(self) -> frozenset[str]:
        return frozenset(name for name, p in self._module.named_parameters() if p.requires_grad)


def _outermost(
    module: nn.Module, path: str, frozen: Collection[str], theirs: Collection[str]
) -> Iterator[str]:
    """Yield the modules all of whose parameters are frozen, and parameters in none of these."""
    prefix = f"{path}." if path else ""
    for name, child in module.named_children():
        inside = {plain_name(f"{prefix}{name}.{own}") for own, _ in child.named_parameters()}
        inside -= {*theirs}
        if inside and inside <= {*frozen}:
            yield prefix + name
        elif inside:
            yield from _outermost(child, prefix + name, frozen, theirs)
    for name, _ in module.named_parameters(recurse=False):
        if plain_name(prefix + name) in frozen:
            yield prefix + name
