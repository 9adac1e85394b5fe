"""Reports as text, JSON and HTML, and the arguments of `advise`."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from torch import nn

from lightning_practices.advisor import Evidence, Finding, Report, _advise, advise, all_rules
from lightning_practices.advisor import rule as new_rule
from tests.advisor.programs import FAULTY, Task, digit_loaders, load_all, mlp

load_all()
pytestmark = pytest.mark.plain


def finding(id: str = "LP201", severity: Any = "error", **others: Any) -> Finding:
    settings = {"practice": "p", "message": "m", "remedy": "r", "source": "s"} | others
    return Finding(id, severity, **settings)


def faulty() -> tuple[Task, Any]:
    return Task(nn.Sequential(mlp(64, 32, 10), nn.Softmax(dim=1))), digit_loaders()


def test_the_worst_comes_first() -> None:
    found = [finding("LP3", "hint"), finding("LP9", "error"), finding("LP2", "error")]
    report = Report([*found, finding("LP1", "warning")], ("LP1",), "Net")
    assert [one.id for one in report] == ["LP2", "LP9", "LP1", "LP3"]
    assert repr(report) == "Net: 2 errors, 1 warning, 1 hint (1 rule asked)"
    assert report.exit_code == 1
    assert Report([finding(severity="warning")]).exit_code == 0


def test_text_shows_markup_of_names_as_it_is() -> None:
    text = str(Report([finding(message="got [bold]x[/] < 3", modules=("net[0]",), step=7)]))
    assert "got [bold]x[/] < 3" in text
    assert "net[0]" in text
    assert "at step 7" in text


def test_what_is_wrong_comes_before_the_practice(tmp_path: Path) -> None:
    one = finding(practice="healthy", message="ill", remedy="cure", modules=("", "net.0"), step=7)
    assert str(one) == (
        "error LP201: ill (in the module itself, net.0, at step 7). To mend it: cure"
    )
    assert str(finding(message="ill", remedy="cure")) == "error LP201: ill. To mend it: cure"
    report = Report([one], ("LP201",), "Net")
    report.write_html(tmp_path / "report.html")
    page = Tags()
    page.feed((tmp_path / "report.html").read_text())
    shown = page.text.partition("Net: 1 error")[2]
    for text in (str(report), report.to_json(), shown):
        places = [text.index(word) for word in ("ill", "cure", "healthy")]
        assert places == sorted(places)


def test_text_for_a_terminal_that_knows_ascii_alone() -> None:
    program = """
from lightning_practices.advisor import Finding, Report
print(Report([Finding("LP201", "error", "p", "got \\u00b5", "r")], ("LP201",), "Net"))
"""
    shown = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True, check=True,
    ).stdout.decode("ascii")  # fmt: skip
    assert "+----" in shown
    assert "got \\xb5" in shown


def test_json_holds_everything_and_no_nan() -> None:
    report = Report([finding(numbers={"loss": math.nan, "share": 0.5})], ("LP201",), "Net")
    loaded = json.loads(report.to_json())
    assert loaded["checked"] == ["LP201"]
    assert loaded["findings"][0]["numbers"] == {"loss": None, "share": 0.5}
    assert loaded["findings"][0]["id"] == "LP201"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_is_one_file_with_everything_escaped(tmp_path: Path) -> None:
    picture = tmp_path / "run.png"
    picture.write_bytes(b"\x89PNG...")
    report = Report([finding(message="<b>3 & 4</b>", modules=("net.0",))], ("LP201",), "Net")
    report.write_html(tmp_path / "report.html", picture)
    text = (tmp_path / "report.html").read_text()
    page = Tags()
    page.feed(text)
    assert page.open == []
    assert "<b>3 & 4</b>" in page.text
    assert not re.search(r"(src|href)=\"(?!data:)", text)  # nothing is fetched
    assert "1 error (1 rule asked)" in page.text
    with pytest.raises(OSError, match="missing"):
        report.write_html(tmp_path / "missing" / "report.html")


def test_select_and_ignore() -> None:
    arguments = faulty()
    assert {one.id for one in advise(*arguments)} >= {"LP201"}
    assert advise(*arguments, select=["LP201"]).checked == ("LP201",)
    assert "LP201" not in advise(*arguments, ignore=["LP2"]).checked
    assert len(advise(*arguments, ignore=["LP201"]).checked) == len(all_rules()) - 1


def test_bad_arguments() -> None:
    module, data = faulty()
    with pytest.raises(TypeError, match=r"module has to be a LightningModule, but got Sequential"):
        advise(nn.Sequential(), data)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ignore has 'lp201', .*did you mean 'LP201'\?.* --list"):
        advise(module, data, ignore=["lp201"])
    with pytest.raises(TypeError, match=r"select has to be a list of"):
        advise(module, data, select="LP201")
    with pytest.raises(TypeError, match=r"trainer has to be a Trainer"):
        advise(module, data, {"max_epochs": 1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no training data"):
        advise(module)
    with pytest.raises(ValueError, match=r"no batch"):
        advise(module, [])


def test_identifiers_are_unique_and_rules_are_documented() -> None:
    rules = all_rules()
    assert len({rule.id for rule in rules}) == len(rules)
    for rule in rules:
        assert re.fullmatch(r"LP[1-8]\d\d", rule.id)
        assert rule.severity in ("error", "warning", "hint")
        assert all((rule.practice, rule.measures, rule.healthy, rule.source)), rule.id


def test_trainer_is_only_read() -> None:
    trainer = Trainer(max_epochs=3, logger=False, enable_checkpointing=False)
    before = {name: str(value) for name, value in vars(trainer).items()}
    advise(*faulty(), trainer)
    assert {name: str(value) for name, value in vars(trainer).items()} == before


def test_a_rule_that_fails_says_so_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    @new_rule("LP999", "error", practice="p", measures="m", healthy="h", source="s")
    def broken(seen: Any) -> Iterator[Evidence]:
        yield Evidence("found before", "r")
        math.log(0 * len(seen.steps))

    monkeypatch.setattr(_advise, "all_rules", lambda: (broken, *all_rules()))
    report = advise(*faulty())
    assert {one.id for one in report} >= {"LP000", "LP201"}
    [failed] = [one for one in report if one.id == "LP000"]
    assert failed.severity == "warning"
    assert re.match(r"rule LP999 failed: ValueError: .* \(test_report.py:\d+\)", failed.message)
    assert 'ignore=["LP999"]' in failed.remedy
    assert "LP000" not in {one.id for one in advise(*faulty(), ignore=["LP999"])}


@pytest.mark.parametrize(
    ("program", "id", "text", "remedy"),
    [
        ("failures.tensors_on_a_fixed_device", "LP250", r"at failures.py:\d+: tensors are put on .*"
         r" The exception is \w+: .*(NVIDIA|CUDA|meta)", r"device=self.device"),
        ("failures.backward_under_automatic_optimization", "LP250", r"at failures.py:\d+: .*"
         r"a backward\(\) in the step.* Trying to backward", r"manual_backward"),
        ("failures.token_beyond_the_embedding", "LP250", r"index out of range", r"num_embeddings"),
        ("failures.state_with_its_graph", "LP251", r"self.state keeps .* backward fails", "detach"),
        ("widened.classes_from_one", "LP216", r"targets are from 1 to 10", r"y = y - 1"),
        ("monitors.plateau_without_monitor", "LP611", r"has no monitor", r'monitor="val_loss"'),
    ],
)  # fmt: skip
def test_causes_and_remedies_name_what_to_change(
    program: str, id: str, text: str, remedy: str
) -> None:
    report = advise(*FAULTY[program].make())
    [found] = [one for one in report if one.id == id]
    assert re.search(text, found.message)
    assert re.search(remedy, found.remedy)
    assert report.exit_code == 1


@pytest.mark.parametrize(
    ("program", "remedy"),
    [
        ("structure.norms_decayed_by_sgd", r"^SGD\(.*\(self, weight_decay=0\.0001\)\)$"),
        ("structure.biases_decayed", r"^AdamW\(.*\(self, weight_decay=0\.01\)\)$"),
    ],
)
def test_groups_keep_the_users_optimizer_and_decay(program: str, remedy: str) -> None:
    [found] = advise(*FAULTY[program].make(), select=["LP551"])
    assert re.search(remedy, found.remedy)
