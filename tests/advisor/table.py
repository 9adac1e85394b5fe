"""The table of rules in docs/advisor.md. ``python -m tests.advisor.table`` writes it anew."""

from pathlib import Path

from lightning_practices.advisor import all_rules, training_rules
from lightning_practices.files import write_file

PAGE = Path(__file__).parents[2] / "docs" / "advisor.md"
BEGIN, END = "<!-- rules: begin -->\n", "<!-- rules: end -->"


def table() -> str:
    """Return the table of the rules as Markdown."""
    rows = [
        [rule.id, rule.severity, rule.practice, rule.measures, rule.healthy, rule.source]
        for rule in all_rules() + training_rules()
    ]
    head = ["rule", "severity", "practice", "what is measured", "healthy", "source"]
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines
    )


def page() -> str:
    """Return the page with the table of the present rules."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    write_file(PAGE, page())
