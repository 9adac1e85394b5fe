"""Freezing of all parameters that a phase doesn't train, under DDP and FSDP2 too."""

from collections.abc import Collection, Iterator

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from lightning_practices._names import plain_name
from lightning_practices._packages import either
from lightning_practices.callbacks._unfreezing.plan import Plan
from lightning_practices.surgery import freeze, unfreeze


class Freezing:
    """Freezes the parameters of a module that a phase doesn't train.

    Args:
        module: The module. The constructor freezes nothing.
        plan: The parameters that each phase trains.
        dropout: Whether dropout stays active in frozen blocks.
    """

    def __init__(self, module: LightningModule, plan: Plan, dropout: bool) -> None:
        self._module = module
        self._plan = plan
        self._dropout = dropout
        self._parts: list[str] = []  # the frozen modules and parameters
        self._flags: dict[str, bool] = {}  # requires_grad of each parameter after apply()
        self._reduced = self._trainable()  # the parameters whose gradients DDP reduces

    def apply(self, trained: Collection[str]) -> list[str]:
        """Freeze all parameters but ``trained``.

        Returns:
            The names of the parameters whose ``requires_grad`` other code has changed since the
            last call. They keep their ``requires_grad``.
        """
        for module in self._module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # gathered parameters have a separate requires_grad
        parameters = {plain_name(name): p for name, p in self._module.named_parameters()}
        present = {name: p.requires_grad for name, p in parameters.items()}
        others = [name for name, flag in self._flags.items() if present[name] is not flag]
        self.undo()
        frozen = present.keys() - {*trained} - self._plan.frozen_by_author
        self._parts = [*_outermost(self._module, "", frozen, self._plan.frozen_by_author)]
        for block in self._plan.blocks:  # adds modules without parameters
            if not {*map(plain_name, block.parameters)} - self._plan.frozen_by_author - frozen:
                self._parts += block.modules
        freeze(self._module, self._parts, dropout=self._dropout)
        for name in others:
            parameters[name].requires_grad_(present[name])
        self._flags = {name: p.requires_grad for name, p in parameters.items()}
        return others

    def undo(self) -> None:
        """Unfreeze the modules and parameters that :meth:`apply` froze."""
        unfreeze(self._module, self._parts)
        self._parts, self._flags = [], {}
        # What the author had frozen with `freeze`, such as batch norms, went along with its block.
        theirs = self._plan.frozen_by_author & {*map(plain_name, self._trainable())}
        freeze(self._module, [*_outermost(self._module, "", theirs, ())])

    def rewrap(self, trainer: Trainer) -> None:
        """Wrap the module in DDP anew if the set of trainable parameters has changed.

        ``DistributedDataParallel`` reduces the gradients of those parameters that were trainable
        when it was made. Every rank has to call this.
        """
        trainable = self._trainable()
        strategy = trainer.strategy
        if trainable == self._reduced or not isinstance(strategy.model, DistributedDataParallel):
            return
        self._reduced = trainable
        strategy.model = strategy.lightning_module  # drops the old reducer with its hooks
        if hasattr(strategy, "_pl_static_graph_delay_done"):
            strategy._pl_static_graph_delay_done = False  # the autograd graph has changed
        assert isinstance(strategy, either(DDPStrategy))
        strategy.configure_ddp()

    def _trainable(self) -> frozenset[str]:
        return frozenset(name for name, p in self._module.named_parameters() if p.requires_grad)


def _outermost(
    module: nn.Module, path: str, frozen: Collection[str], left_out: Collection[str]
) -> Iterator[str]:
    """Yield the outermost fully frozen modules, and the frozen parameters outside of them.

    A module is fully frozen if all its parameters are in ``frozen`` or ``left_out``, and at least
    one is in ``frozen``.
    """
    prefix = f"{path}." if path else ""
    for name, child in module.named_children():
        inside = {plain_name(f"{prefix}{name}.{own}") for own, _ in child.named_parameters()}
        inside -= {*left_out}
        if inside and inside <= {*frozen}:
            yield prefix + name
        elif inside:
            yield from _outermost(child, prefix + name, frozen, left_out)
    for name, _ in module.named_parameters(recurse=False):
        if plain_name(prefix + name) in frozen:
            yield prefix + name
