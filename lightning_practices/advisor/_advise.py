"""Advise on a module and its data before a fit."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_practices._arguments import check_instance
from lightning_practices._packages import check_one_package, either
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._observe import observe, release_observation
from lightning_practices.advisor._report import Report
from lightning_practices.advisor._rule import Finding, Rule
from lightning_practices.advisor.rules import all_rules, rules_matching

_LOSSES = "LP2"  # the rules that need no more of a step than its loss
_STEPLESS = ("LP251",)  # those that need no whole step
_FAILURE = ("LP250",)  # the rule that explains an exception which no other rule does


def advise(
    module: LightningModule,
    data: Any = None,
    trainer: Trainer | None = None,
    *,
    ignore: Sequence[str] = (),
    select: Sequence[str] = (),
) -> Report:
    """Say which practices are missing or broken in a training, with evidence and remedy.

    A copy of the module runs one training step and one validation step on a copy of the data's
    loaders, from a fixed seed, and the first batches of both splits are read. While the steps run,
    the functions that they call on tensors are recorded. Rules look at the recording, the
    gradients, the weights, the data, the optimizers and, if it is given, the Trainer.

    If a step raises an exception whose cause is known, such as shapes or devices that don't fit,
    the report names the cause and the user's line as an error, and holds no other rules than those
    that need no whole step. Another exception is raised.

    No effect stays: module, loaders, datamodule, Trainer and random states are as before, bit for
    bit. But the user's own code runs, such as ``prepare_data`` and hooks, also those of
    ``Tensor.register_hook``, and what it writes to files stays written. Datasets are shared with
    the copy, so that a dataset which changes while it is read, such as a stream, has given away the
    batches that were read.

    Args:
        module: The module.
        data: A datamodule, a train loader, or a pair ``(train, validation)`` of loaders. As for
            ``Trainer.fit``, a list or dict holds several loaders that give one batch together.
            ``None`` for the loaders that the module defines.
        trainer: The Trainer of the fit, for rules about the plan: its length, callbacks, precision.
            It runs nothing.
        ignore: Identifiers of rules to leave out, such as ``"LP201"``, or their beginnings, such as
            ``"LP2"``.
        select: Identifiers of the only rules to ask, or their beginnings. All, if empty.

    Returns:
        The report.

    Raises:
        TypeError: If ``module`` is not a LightningModule, ``data`` is neither a datamodule nor
            loaders, or ``trainer`` is not a Trainer of the same package.
        ValueError: If ``ignore`` or ``select`` names no rule. If there is no training data, or
            ``on_train_batch_start`` skips all of it.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.advisor import advise
        >>> class Net(BoringModel):
        ...     def training_step(self, batch, batch_idx):
        ...         return nn.functional.cross_entropy(self(batch).softmax(1), batch.argmax(1) % 2)
        >>> [finding] = advise(Net()).findings
        >>> finding.id, finding.severity, finding.practice
        ('LP201', 'error', 'Cross entropy gets logits, not probabilities')
        >>> finding.remedy
        'remove softmax, and apply it to predictions only'
    """
    check_instance("module", module, either(LightningModule), "a LightningModule")
    if trainer is not None:
        check_instance("trainer", trainer, either(Trainer), "a Trainer")
        check_one_package(module, trainer)
    left_out, asked = (
        rules_matching(all_rules(), name, ids)
        for name, ids in (("ignore", ignore), ("select", select))
    )
    rules = [rule for rule in asked or all_rules() if rule not in left_out]
    seen = observe(module, data, trainer)
    try:
        found, used = _asked(rules, seen)
    finally:
        release_observation(seen)
    return Report(found, tuple(rule.id for rule in used), type(module).__name__)


def _asked(rules: Sequence[Rule], seen: Observation) -> tuple[list[Finding], Sequence[Rule]]:
    """Return the findings of rules, with the rules that could be asked.

    Raises:
        Exception: That of the steps, if they failed and no rule finds an error that explains it.
    """
    apart = [rule for rule in rules if rule.id in _FAILURE]
    others = [rule for rule in rules if rule.id not in _FAILURE]
    if seen.failure is None:
        return _found(others, seen), rules
    chosen = (_LOSSES,) if seen.failed_in_loss else _STEPLESS
    others = [rule for rule in others if rule.id.startswith(chosen)]
    found = _found(others, seen)
    if not any(one.severity == "error" for one in found):
        found += _found(apart, seen)
    if not any(one.severity == "error" for one in found):
        for one in found:  # such as that a rule has failed
            seen.failure.add_note(str(one))
        raise seen.failure
    return found, [*others, *apart]


def _found(rules: Sequence[Rule], seen: Observation) -> list[Finding]:
    """Return the findings of rules, but for repeated ones and those that others explain."""
    found = {rule: rule.findings_or_failure(seen) for rule in rules}
    causes = {one.id for findings in found.values() for one in findings}
    shown = {
        (finding.id, finding.message): finding
        for rule, findings in found.items()
        if causes.isdisjoint(rule.explained_by)
        for finding in findings
    }
    return [*shown.values()]
