"""The LightningModule of an ensemble, saved and loaded as one file."""

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from typing_extensions import override

from lightning_practices._arguments import check_instance, check_listed, shown
from lightning_practices._batches import input_of
from lightning_practices._migration import migrated
from lightning_practices._packages import either, of_both, own_kind, reduced, twin_of
from lightning_practices.ensembles import Ensemble, MonteCarloPrediction, Outputs, Task, Vote

_ADDED = "members"  # the key in a checkpoint of what the hooks of the members add


class _OfItsMembersPackage:
    """Makes an ensemble that is a module of the same package of Lightning as its members.

    It is no part of ``LightningEnsemble``, since tools take the arguments of a class from its own
    ``__new__`` instead of its constructor.
    """

    def __new__(cls, members: Any = (), *args: Any, **kwargs: Any) -> Self:
        """Make an ensemble of the package of Lightning that the members are of."""
        twin = twin_of(LightningModule)
        listed = members if isinstance(members, Sequence) else ()
        kinds: list[Any] = [
            _imported(str(one.get("class_path"))) if isinstance(one, Mapping) else type(one)
            for one in listed
        ]
        is_twins = twin is not None and any(
            isinstance(kind, type) and issubclass(kind, twin) for kind in kinds
        )
        made: Self = super().__new__(of_both(cls) if is_twins else cls)
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        is_twins = hasattr(self, "_public")
        return reduced(super().__reduce_ex__(protocol), of_both if is_twins else _itself)


class LightningEnsemble(_OfItsMembersPackage, LightningModule):
    """An :class:`~lightning_practices.ensembles.Ensemble` that a Trainer tests, predicts and saves.

    ::

        module = LightningEnsemble.from_checkpoints(Net, ["a.ckpt", "b.ckpt"], task="multiclass")
        trainer.test(module, data)
        trainer.save_checkpoint("ensemble.ckpt")
        module = LightningEnsemble.load_from_checkpoint("ensemble.ckpt")

    ``Trainer.test`` takes batches of inputs and targets. It logs ``test_accuracy``, the share of
    correct predictions (not for ``"regression"``), and ``test_loss``: the negative log likelihood
    in nats, or the mean squared error for ``"regression"``. With ``vote="hard"`` there is no loss,
    since votes aren't probabilities. ``Trainer.predict`` takes batches of inputs, or batches that
    begin with them, and returns the result of :meth:`Ensemble.predict
    <lightning_practices.ensembles.Ensemble.predict>`. For batches of another kind, subclass this
    class and override the step, which can call ``self(x)`` or use ``self.ensemble``.

    **The file** holds all weights. For each member that is a LightningModule it also holds the
    class and the arguments, if ``save_hyperparameters`` has recorded all arguments of ``__init__``.
    Loading builds these members again. Import their classes before, since loading a file imports
    nothing. If the file lacks the class or arguments of a member, pass all members:
    ``load_from_checkpoint(path, members=[...])``. The weights of the file replace their weights.

    **The hooks of the members**, ``on_save_checkpoint`` and ``on_load_checkpoint``, are called for
    each member with a checkpoint whose ``state_dict`` is the member's own. So a member that has
    renamed a layer loads an older file as it loads its own older checkpoints.

    **The package**: if ``members`` is a list with a module of ``pytorch_lightning``, the ensemble
    is a module of that package, for its Trainer. Otherwise it is one of ``lightning.pytorch``.

    Args:
        members: The models. They are copied.
        task: ``"binary"``, ``"multiclass"`` or ``"regression"``, see
            :class:`~lightning_practices.ensembles.Ensemble`.
        outputs: Whether members return ``"logits"`` or ``"probabilities"``.
        vote: ``"soft"`` or ``"hard"``.
        vectorize: Whether all members run in one call, by ``torch.vmap``. Default: see
            :class:`~lightning_practices.ensembles.Ensemble`.

    Attributes:
        ensemble: The ensemble.

    Raises:
        TypeError: If a member isn't a module, or if the loaded file lacks a member's class or
            arguments.
        ValueError: As for :class:`~lightning_practices.ensembles.Ensemble`. If the loaded file
            names a class that isn't imported.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_practices.modules import LightningEnsemble
        >>> module = LightningEnsemble([nn.Linear(4, 3) for _ in range(5)], task="multiclass")
        >>> data = torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=8)
        >>> [prediction] = Trainer(barebones=True, accelerator="cpu").predict(module, data)
        >>> torch.allclose(prediction.mean, module(data.dataset), atol=1e-6)
        True
    """

    def __init__(
        self,
        members: Iterable[nn.Module | Mapping[str, Any]],
        *,
        task: Task,
        outputs: Outputs = "logits",
        vote: Vote = "soft",
        vectorize: bool | None = None,
    ) -> None:
        super().__init__()
        given = check_listed("members", members, "several modules")
        built = [_built(one) if isinstance(one, Mapping) else one for one in given]
        options: dict[str, Any] = {
            "task": task,
            "outputs": outputs,
            "vote": vote,
            "vectorize": vectorize,
        }
        self.ensemble = Ensemble(built, **options)
        self.save_hyperparameters({"members": [_described(one) for one in built], **options})

    @classmethod
    def from_checkpoints(
        cls,
        module_class: type[LightningModule],
        paths: Sequence[str | Path],
        *,
        task: Task,
        outputs: Outputs = "logits",
        vote: Vote = "soft",
        vectorize: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Return the ensemble of the modules in checkpoints.

        The checkpoints are loaded to the CPU, with ``weights_only=True``.

        Args:
            module_class: The class of all members.
            paths: The checkpoint of each member.
            task: As for the class.
            outputs: As for the class.
            vote: As for the class.
            vectorize: As for the class.
            **kwargs: Arguments of ``module_class`` that a checkpoint doesn't hold, for
                ``module_class.load_from_checkpoint``.
        """
        is_class = isinstance(module_class, type) and issubclass(
            module_class, either(LightningModule)
        )
        if not is_class:
            raise TypeError(
                f"module_class has to be a class of LightningModules, but got {shown(module_class)}"
            )
        paths = check_listed("paths", paths, "a list of the paths of checkpoints")
        for path in paths:
            check_instance("each of paths", path, (str, PathLike), "the path of a checkpoint")
        members = [
            module_class.load_from_checkpoint(path, map_location="cpu", weights_only=True, **kwargs)
            for path in paths
        ]
        return cls(members, task=task, outputs=outputs, vote=vote, vectorize=vectorize)

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of the ensemble."""
        outputs: Tensor = self.ensemble(*args, **kwargs)
        return outputs

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # What the hook of a member adds for itself, its hook may need on loading.
        added: dict[int, dict[str, Any]] = {}
        for place, member in self._with_hook("on_save_checkpoint"):
            own: dict[str, Any] = {"state_dict": _part(checkpoint["state_dict"], place)}
            member.on_save_checkpoint(own)
            del own["state_dict"]  # the file holds all weights
            added[place] = own
        if any(added.values()):
            checkpoint[_ADDED] = added

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        added = checkpoint.get(_ADDED, {})
        for place, member in self._with_hook("on_load_checkpoint"):
            own = {**checkpoint, "hyper_parameters": dict(member.hparams), **added.get(place, {})}
            part = _part(checkpoint["state_dict"], place)
            new = migrated(member, own, part)
            prefix = _prefix(place)
            state = checkpoint["state_dict"]
            others = {name: state[name] for name in state if not name.startswith(prefix)}
            checkpoint["state_dict"] = others | {f"{prefix}{name}": new[name] for name in new}

    def _with_hook(self, name: str) -> Iterator[tuple[int, LightningModule]]:
        """Yield each member that overrides a hook of LightningModule, after its place."""
        kinds = either(LightningModule)
        for place, member in enumerate(self.ensemble.members):
            if isinstance(member, kinds) and is_overridden(
                name, member, own_kind(member, LightningModule)
            ):
                yield place, member

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        task, loss = self.ensemble.task, None
        if self.ensemble.vote == "hard":
            said = self(x)
        elif task == "regression":
            said = self(x)
            loss = F.mse_loss(said, y)
        else:
            said = self.ensemble.logits(x)
            loss = F.cross_entropy(said, y) if task == "multiclass" else _binary_loss(said, y)
        options: dict[str, Any] = {"on_epoch": True, "sync_dist": True, "batch_size": len(y)}
        if loss is not None:
            self.log("test_loss", loss, **options)
        if task != "regression":
            yes = said > (0.5 if self.ensemble.vote == "hard" else 0.0)
            right = (said.argmax(1) if task == "multiclass" else yes) == y
            self.log("test_accuracy", right.float().mean(), **options)

    @override
    def predict_step(self, batch: Any, *args: Any, **kwargs: Any) -> MonteCarloPrediction:
        return self.ensemble.predict(input_of(batch))


def _itself(kind: type) -> type:
    return kind


def _prefix(place: int) -> str:
    return f"ensemble.members.{place}."


def _part(state: Mapping[str, Any], place: int) -> dict[str, Any]:
    """Return the state of a member, with the member's own names."""
    prefix = _prefix(place)
    return {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}


def _binary_loss(logits: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype))


def _described(member: nn.Module) -> dict[str, Any]:
    """Return the class and the arguments of a member; ``None`` for arguments not fully known."""
    kind = type(member)
    described: dict[str, Any] = {
        "class_path": f"{kind.__module__}.{kind.__qualname__}",
        "init_args": None,
    }
    if isinstance(member, either(LightningModule)):
        parameters = inspect.signature(kind).parameters.values()
        named = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        noted = dict(member.hparams)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if named <= noted.keys():
            described["init_args"] = {
                name: value for name, value in noted.items() if takes_any or name in named
            }
    return described


def _built(described: Mapping[str, Any]) -> LightningModule:
    """Build a member from its class and arguments; its weights are loaded later."""
    path: Any = described.get("class_path")
    arguments = described.get("init_args")
    is_known = isinstance(path, str) and (arguments is None or isinstance(arguments, Mapping))
    if not is_known or any(not isinstance(name, str) for name in arguments or ()):
        raise ValueError(
            "members has to hold modules, or as a file holds them dicts of class_path, the name of"
            f" a class, and init_args, a dict of its arguments, but got {shown(described)}"
        )
    if arguments is None:
        raise TypeError(
            f"the file doesn't hold how to build the member of class {shown(path)}, which is no"
            " LightningModule or hasn't saved all its arguments as hyperparameters: give the"
            " members, as in load_from_checkpoint(path, members=[...])"
        )
    kind = _imported(path)
    if not (isinstance(kind, type) and issubclass(kind, either(LightningModule))):
        raise ValueError(
            f"the file names a member of class {shown(path)}, which is no LightningModule that"
            " has been imported: import it first, or give load_from_checkpoint(path, members=[...])"
        )
    return kind(**arguments)


def _imported(path: str) -> Any:
    """Return the object at a dotted path within an imported module; ``None`` if there is none."""
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:count]))
        if found is not None:
            for name in parts[count:]:
                found = getattr(found, name, None)
            return found
    return None
