"""Further copies of a module's weights in its checkpoints, and how they are loaded."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_practices._migration import migrated
from lightning_practices._names import plain_name, some
from lightning_practices._packages import own_kind
from lightning_practices.callbacks._trainer.kept_state import KeptState

SAME: Literal["state_dict"] = "state_dict"
"""Stands in a checkpoint for a copy that equals the checkpoint's own ``state_dict``."""

_Label = TypeVar("_Label", bound=str | int)


def load_copies(
    pl_module: LightningModule,
    checkpoint: Mapping[str, Any],
    copies: Mapping[_Label, Any],
    what: str,
    expected: Mapping[str, Tensor] | None = None,
) -> dict[_Label, dict[str, Any]]:
    """Load copies of the weights from a checkpoint, with the names that the module has now.

    Each copy passes through the module's ``on_load_checkpoint``, see
    :func:`~lightning_practices._migration.migrated`. A copy that equals the ``state_dict`` isn't in
    the checkpoint a second time (:data:`SAME`), and has passed through the hook with it. The module
    and the random states are as before, even if the hook makes new layers.

    Args:
        pl_module: The module, which has loaded the ``state_dict`` of the checkpoint.
        checkpoint: The checkpoint, as ``Callback.on_load_checkpoint`` gets it.
        copies: The copies by label, whole tensors or :data:`SAME`.
        what: What the copies are, for messages; ``{}`` in it stands for the label.
        expected: The tensors of the module by name that each copy has to hold. Default: all
            parameters in the module's ``state_dict``.

    Returns:
        The copies by label. Their names are those of the module's ``state_dict``.

    Raises:
        MisconfigurationException: If names or shapes don't fit the module. If the module's
            ``strict_loading`` is ``False``, names that don't fit are only warned of: the missing
            entries are those that the module has now.
    """
    if expected is None:
        expected = _parameters(pl_module)
    loaded: dict[_Label, dict[str, Any]] = {}
    with _unchanged(pl_module):
        for label, copy in copies.items():
            if copy == SAME:  # ModelParallelStrategy has taken the state_dict out
                state = checkpoint.get(SAME) or pl_module.state_dict()
            elif _migrates(pl_module):
                state = migrated(pl_module, checkpoint, copy)
            else:
                state = copy
            loaded[label] = dict(state)
    names = _Names(pl_module, expected)
    return {label: names.checked(state, what.format(label)) for label, state in loaded.items()}


class _Names:
    """Compares the names of a copy with those of a module."""

    def __init__(self, pl_module: LightningModule, expected: Mapping[str, Tensor]) -> None:
        self._module = pl_module
        self._expected = expected
        self._live = {**pl_module.state_dict(), **expected}
        self._known = {plain_name(name): name for name in self._live}
        # Buffers that are None are in no state_dict of the module, but may be in a copy.
        for prefix, module in pl_module.named_modules():
            for leaf in module._buffers:
                name = f"{prefix}.{leaf}" if prefix else leaf
                self._known.setdefault(plain_name(name), name)

    def checked(self, state: Mapping[str, Any], what: str) -> dict[str, Any]:
        """Return a copy with the module's names; raise if its names or shapes don't fit."""
        found = {
            self._known[plain]: value
            for name, value in state.items()
            if (plain := plain_name(name)) in self._known
        }
        missing = self._expected.keys() - found.keys()
        unexpected = {name for name in state if plain_name(name) not in self._known}
        if unexpected:  # then a buffer that the copy lacks may have had another name
            missing |= self._live.keys() - found.keys()
        if missing or unexpected:
            self._reject(what, _listed("missing", missing), _listed("unexpected", unexpected))
        shapes = [
            f"{name}: {tuple(found[name].shape)} in the checkpoint, {tuple(tensor.shape)} now"
            for name, tensor in self._expected.items()
            if name in found and found[name].shape != tensor.shape
        ]
        if shapes:
            raise MisconfigurationException(
                f"the shapes of {what} in the checkpoint don't fit {self._kind}:"
                f" {some(shapes)}: {self._remedy}"
            )
        return {**{name: self._live[name] for name in missing}, **found}

    @property
    def _kind(self) -> str:
        return type(self._module).__name__

    @property
    def _remedy(self) -> str:
        hook = f"{self._kind}.on_load_checkpoint"
        if _migrates(self._module):
            return (
                f"{hook} gets each copy of the weights as checkpoint['state_dict'] too, and has to"
                " change it in the same way, so let it decide by the names in that dict, and not by"
                " another entry that it changes"
            )
        return f"define {hook}, which gets each copy as checkpoint['state_dict'], and change it"

    def _reject(self, what: str, *found: str) -> None:
        message = (
            f"the names of {what} in the checkpoint don't fit {self._kind},"
            f" {' and '.join(filter(None, found))}: "
        )
        if self._module.strict_loading:
            raise MisconfigurationException(message + self._remedy)
        rank_zero_warn(
            f"{message}as strict_loading is False, missing entries are those that the module has"
            " now, and unexpected entries are left out"
        )


def _migrates(pl_module: LightningModule) -> bool:
    """Say whether the module's class has an ``on_load_checkpoint`` of its own."""
    kind = own_kind(pl_module, LightningModule)
    return is_overridden("on_load_checkpoint", pl_module, kind)


def _parameters(pl_module: LightningModule) -> dict[str, Tensor]:
    live = pl_module.state_dict()
    names = [name for name, _ in pl_module.named_parameters(remove_duplicate=False)]
    return {name: live[name] for name in names if name in live}


def _listed(kind: str, names: Iterable[str]) -> str:
    listed = sorted(names)
    return f"{kind} {some(listed)}" if listed else ""


@contextmanager
def _unchanged(pl_module: LightningModule) -> Iterator[None]:
    """Give the module its present state again afterwards, and the process its random states.

    A hook may make layers anew, in the shapes of the ``state_dict``, or write into them.
    """
    if not _migrates(pl_module):
        yield
        return
    before = KeptState.of(pl_module.state_dict())
    with isolate_rng():
        yield
    if not before.equals(pl_module.state_dict()):
        before.load_into(pl_module, strict=pl_module.strict_loading)
