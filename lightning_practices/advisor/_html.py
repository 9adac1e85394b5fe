"""A report as one HTML file."""

import base64
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_practices.advisor.rules import all_rules
from lightning_practices.advisor.rules_of_training import training_rules
from lightning_practices.files import write_file

if TYPE_CHECKING:
    from lightning_practices.advisor._report import Report


def write_html(report: "Report", path: Path, picture: Path | None) -> None:
    """Write a report as an HTML file that needs no other file.

    Args:
        report: The report.
        path: Path of the file.
        picture: A picture of the run in PNG, or ``None``.
    """
    from jinja2 import Environment  # which no import of this package should wait for

    text = (files("lightning_practices.advisor") / "report.html.jinja").read_text("utf-8")
    template = Environment(autoescape=True, trim_blocks=True).from_string(text)
    encoded = picture and base64.b64encode(picture.read_bytes()).decode()
    rules = [rule for rule in all_rules() + training_rules() if rule.id in report.checked]
    write_file(
        path, template.render(report=report, summary=repr(report), picture=encoded, rules=rules)
    )
