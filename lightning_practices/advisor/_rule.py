"""Rules, and what they find."""

import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from typing_extensions import override

from lightning_practices._names import some

Severity = Literal["error", "warning", "hint"]
"""How bad a finding is, the worst first."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "hint")  # the worst first

RULE_FAILED = "LP000"  # identifier of the finding that a rule itself has failed


@dataclass(frozen=True)
class Evidence:
    """What a rule has found once.

    Attributes:
        message: What is wrong, with its numbers and names.
        remedy: A line of code, or a sentence, that mends it.
        modules: Names of the modules or parameters concerned, as in ``named_modules``.
        numbers: What was measured.

    Example:
        >>> from lightning_practices.advisor import Evidence
        >>> one = Evidence("the rate is 10", "lr=1e-3", numbers={"lr": 10.0})
        >>> one.message, one.modules
        ('the rate is 10', ())
    """

    message: str
    remedy: str
    modules: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """A fault, or a missing practice, with its evidence. ``print`` shows it in a line.

    Attributes:
        id: Identifier of the rule, such as ``"LP201"``.
        severity: ``"error"`` for what makes training wrong, ``"warning"`` for what is likely to
            harm it, ``"hint"`` for what may be better.
        practice: The practice that is broken or missing, as healthy programs have it.
        message: What is wrong, with its numbers and names.
        remedy: A line of code, or a sentence, that mends it.
        modules: Names of the modules or parameters concerned.
        numbers: What was measured.
        source: Lecture or paper of the practice.
        step: Optimizer step at which it was found; ``None`` before training.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.advisor import advise
        >>> class Net(BoringModel):
        ...     def configure_optimizers(self):
        ...         other = nn.Linear(32, 2)  # not this module's layer
        ...         return torch.optim.SGD(other.parameters(), lr=0.1)
        >>> finding = advise(Net()).findings[0]
        >>> finding.id, finding.severity, finding.modules
        ('LP108', 'error', ('layer',))
    """

    id: str
    severity: Severity
    practice: str
    message: str
    remedy: str
    modules: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    step: int | None = None

    @property
    def where(self) -> str:
        """The modules and the step, as ``"in net.4, at step 7"``; empty if there are none."""
        names = [name or "the module itself" for name in self.modules]
        places = [f"in {some(names)}"] if names else []
        return ", ".join([*places, *([f"at step {self.step}"] if self.step is not None else [])])

    @override
    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        return f"{self.severity} {self.id}: {self.message}{where}. To mend it: {self.remedy}"


Find = Callable[[Any], Iterator[Evidence]]  # of an Observation, or of a Run


@dataclass(frozen=True)
class Rule:
    """A rule of the advisor, as data.

    Attributes:
        id: Identifier, such as ``"LP201"``. The first digit is the group: 1 modes and parameters,
            2 outputs and losses, 3 data, 4 the state at initialisation, 5 the structure of the
            model, 6 the plan of the fit, 7 speed, 8 what only training shows.
        severity: ``"error"``, ``"warning"`` or ``"hint"``.
        practice: The practice that the rule checks, in a few words.
        measures: What the rule measures.
        healthy: The range of healthy programs, as was measured on those of the tests.
        source: Lecture, paper or report.
        find: Function that yields what is wrong.
        explained_by: Identifiers of rules whose findings are causes of this one's. Where one of
            them finds something, this rule's findings are left out.

    Example:
        >>> from lightning_practices.advisor import Run, training_rules
        >>> rule = next(rule for rule in training_rules() if rule.id == "LP818")
        >>> rule.practice
        "Training doesn't wait for data"
        >>> [finding.severity for finding in rule.findings(Run(waited=0.8))]
        ['hint']
    """

    id: str
    severity: Severity
    practice: str
    measures: str
    healthy: str
    source: str
    find: Find = field(repr=False)
    explained_by: tuple[str, ...] = ()

    def findings(self, seen: Any, step: int | None = None) -> list[Finding]:
        """Return what the rule finds in an observation, or in a run at an optimizer step."""
        return [
            Finding(
                self.id, self.severity, self.practice, one.message, one.remedy, one.modules,
                one.numbers, self.source, step,
            )
            for one in self.find(seen)
        ]  # fmt: skip

    def findings_or_failure(self, seen: Any, step: int | None = None) -> list[Finding]:
        """Return what :meth:`findings` does, or a finding of its own if the rule itself fails.

        A fault of a rule is none of the program that it looks at, so that it may neither end a fit
        nor hide what other rules find.
        """
        try:
            return self.findings(seen, step)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            return [
                Finding(
                    RULE_FAILED, "warning", "The advisor's rules run to their end",
                    f"rule {self.id} failed: {type(error).__name__}: {error}"
                    f" ({Path(last.filename).name}:{last.lineno}). It says nothing of this program",
                    f'please report it; until it is mended, ignore=["{self.id}"]',
                    source=self.source, step=step,
                )
            ]  # fmt: skip


def rule(
    id: str,
    severity: Severity,
    *,
    practice: str,
    measures: str,
    healthy: str,
    source: str,
    explained_by: tuple[str, ...] = (),
) -> Callable[[Find], Rule]:
    """Make a function that yields evidence a :class:`Rule`; the arguments are its attributes.

    Returns:
        A decorator of a function that gets an observation, or for rules of training a
        :class:`Run`, and yields :class:`Evidence`.

    Example:
        >>> from lightning_practices.advisor import Evidence, Run, rule
        >>> @rule("MY1", "hint", practice="Fits are long", measures="optimizer steps",
        ...       healthy="1000 and more", source="our team")
        ... def short(run):
        ...     if run.is_over and run.steps < 1000:
        ...         yield Evidence(f"the fit took {run.steps} steps", "max_steps=1000")
        >>> short.findings(Run(steps=50, is_over=True))[0].message
        'the fit took 50 steps'
        >>> short.findings(Run(steps=5000, is_over=True))
        []
    """

    def made(find: Find) -> Rule:
        return Rule(id, severity, practice, measures, healthy, source, find, explained_by)

    return made
