"""What the advisor says."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from rich.markup import escape
from rich.table import Table
from typing_extensions import override

from lightning_practices._names import count, some
from lightning_practices._tables import as_text
from lightning_practices.advisor._rule import SEVERITIES, Finding, Severity

_STYLES = {"error": "bold red", "warning": "yellow", "hint": "cyan"}


@dataclass(repr=False)
class Report:
    """The findings of :func:`advise`, the worst first. ``print`` shows them as a table.

    Attributes:
        findings: The findings.
        checked: Identifiers of the rules that were asked.
        subject: Name of the module's class.
    """

    findings: list[Finding] = field(default_factory=list)
    checked: Sequence[str] = ()
    subject: str = ""

    def __post_init__(self) -> None:
        self.findings.sort(key=lambda one: (SEVERITIES.index(one.severity), one.id))

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def of(self, severity: Severity) -> list[Finding]:
        """Return the findings of one severity."""
        return [one for one in self.findings if one.severity == severity]

    @property
    def exit_code(self) -> int:
        """1 if there is an error, for a process that checks; otherwise 0."""
        return int(bool(self.of("error")))

    def to_json(self) -> str:
        """Return the report as JSON."""
        found = [asdict(one) for one in self.findings]
        return json.dumps({"subject": self.subject, "checked": [*self.checked], "findings": found})

    def __rich__(self) -> Table:
        table = Table("", "finding", title=repr(self), title_justify="left", show_lines=True)
        for one in self.findings:
            style = _STYLES[one.severity]
            where = f"\n[dim]in {escape(some(one.modules))}[/]" if one.modules else ""
            when = f"\n[dim]at step {one.step}[/]" if one.step is not None else ""
            table.add_row(
                f"[{style}]{one.severity}[/]\n{one.id}",
                f"[bold]{escape(one.practice)}[/]\n{escape(one.message)}{where}{when}\n"
                f"[green]{escape(one.remedy)}[/]",
            )
        return table

    @override
    def __str__(self) -> str:
        return as_text(self) if self.findings else repr(self)

    @override
    def __repr__(self) -> str:
        counts = Counter(one.severity for one in self.findings)
        shown = [count(counts[each], each) for each in SEVERITIES if counts[each]]
        found = ", ".join(shown) or "no findings"
        return f"{self.subject}: {found} of {count(len(self.checked), 'rule')}"
