"""The findings of the advisor as text, JSON, HTML and an exit code."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike

from rich.markup import escape
from rich.table import Table
from typing_extensions import override

from lightning_practices._arguments import check_path
from lightning_practices._names import count
from lightning_practices._tables import as_text
from lightning_practices.advisor._html import write_html
from lightning_practices.advisor._rule import SEVERITIES, Finding, Severity

_STYLES = {"error": "bold red", "warning": "yellow", "hint": "cyan"}
# What of a finding JSON holds.
_ORDER = (
    "id", "severity", "message", "modules", "step", "remedy", "numbers", "practice", "source",
)  # fmt: skip


@dataclass(repr=False)
class Report:
    """The findings of :func:`advise`, the worst first. ``print`` shows them as a table.

    Attributes:
        findings: The findings.
        checked: Identifiers of the rules that were asked.
        subject: Name of the module's class.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.advisor import advise
        >>> report = advise(BoringModel())
        >>> report.findings, report.exit_code, report.subject
        ([], 0, 'BoringModel')
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
        """Return the report as JSON: ``subject``, ``findings`` and ``checked``.

        A finding has the attributes of :class:`Finding`, what is wrong first. Numbers that JSON
        doesn't know, such as nan, are ``null``.
        """
        found = [
            {name: getattr(one, name) for name in _ORDER}
            | {"numbers": {k: x if math.isfinite(x) else None for k, x in one.numbers.items()}}
            for one in self.findings
        ]
        report = {"subject": self.subject, "findings": found, "checked": [*self.checked]}
        return json.dumps(report, allow_nan=False)

    def write_html(
        self, path: str | PathLike[str], picture: str | PathLike[str] | None = None
    ) -> None:
        """Write the report as one HTML file, for a browser.

        Args:
            path: Path of the file, such as ``"report.html"``.
            picture: Path of a PNG of the run, such as that of
                :class:`~lightning_practices.callbacks.LearningCurves`, which the file then holds.

        Raises:
            TypeError: If ``path`` or ``picture`` is not a path.
            OSError: If the picture can't be read, or the file can't be written.
        """
        shown = None if picture is None else check_path("picture", picture, "picture")
        write_html(self, check_path("path", path, "report"), shown)

    def __rich__(self) -> Table | str:
        if not self.findings:
            return escape(repr(self))
        table = Table(
            "", "what is wrong, where, and what to change", title=repr(self), title_justify="left",
            show_lines=True,
        )  # fmt: skip
        for one in self.findings:
            style = _STYLES[one.severity]
            where = f"{escape(one.where)}\n" if one.where else ""
            table.add_row(
                f"[{style}]{one.severity}[/]\n{one.id}",
                f"[bold]{escape(one.message)}[/]\n{where}"
                f"to mend it: [green]{escape(one.remedy)}[/]\n"
                f"[dim]practice: {escape(one.practice)}[/]",
            )
        return table

    @override
    def __str__(self) -> str:
        return as_text(self)

    @override
    def __repr__(self) -> str:
        counts = Counter(one.severity for one in self.findings)
        shown = [count(counts[each], each) for each in SEVERITIES if counts[each]]
        found = ", ".join(shown) or "no findings"
        return f"{self.subject}: {found} ({count(len(self.checked), 'rule')} asked)"
