"""What has to stay the same in a schedule of unfreezing when a fit is resumed."""

from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_practices._names import some
from lightning_practices.callbacks._unfreezing.plan import Plan


def layout_of(plan: Plan) -> dict[str, Any]:
    """Return which parameters each phase trains, and the scale of the rate of each parameter.

    Parameters are given by their positions in the module, and not by the names of blocks or
    parameters, which the module may have changed since the checkpoint was saved.

    Returns:
        Under ``"trained"`` for each phase the positions of the parameters that it trains, and under
        ``"scales"`` the scale of each parameter.
    """
    return {
        "trained": [
            [place for place, name in enumerate(plan.names) if name in names]
            for names in plan.trainable
        ],
        "scales": [plan.shares[name].scale for name in plan.names],
    }


def check_layout(saved: Any, plan: Plan) -> None:
    """Raise ``MisconfigurationException`` if a plan differs from the layout in a checkpoint."""
    if (differs := difference(saved, plan)) is not None:
        raise MisconfigurationException(
            f"the checkpoint is of another schedule of unfreezing, different in {differs}: only"
            " names, until and restore_best of its phases may be changed; to change more, load"
            " the weights into the module and fit without ckpt_path"
        )


def difference(saved: Any, plan: Plan) -> str | None:
    """Return how the layout in a checkpoint differs from that of a plan, or ``None``."""
    now = layout_of(plan)
    if saved == now:
        return None
    if not isinstance(saved, dict):
        return "the version of this package that has saved it, which compared names"
    count = len(plan.names)
    if len(saved["scales"]) != count:
        return f"the number of parameters of the module, {len(saved['scales'])}, now {count}"
    for phase, (old, new) in enumerate(zip(saved["trained"], now["trained"], strict=False), 1):
        if old != new:
            only_old = [plan.names[place] for place in old if place not in new]
            only_new = [plan.names[place] for place in new if place not in old]
            found = [f"no longer trains {some(only_old)}"] if only_old else []
            found += [f"now trains {some(only_new)} too"] if only_new else []
            return f"phase {phase}, which {' and '.join(found)}"
    if len(saved["trained"]) != len(plan.phases):
        return f"the number of phases, {len(saved['trained'])}, now {len(plan.phases)}"
    return _of_scales(saved["scales"], now["scales"], plan.names)


def _of_scales(old: Sequence[float], new: Sequence[float], names: Sequence[str]) -> str:
    place = next(place for place, pair in enumerate(zip(old, new, strict=True)) if len({*pair}) > 1)
    return f"the learning rate of {names[place]}, multiplied by {old[place]}, now by {new[place]}"
