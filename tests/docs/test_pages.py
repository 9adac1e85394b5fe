"""The code of the documents runs, and what they name is there."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import lightning_kernels
from lightning_practices.advisor import all_rules, training_rules
from tests.docs.pages import PAGES, ROOT, run

pytestmark = [
    pytest.mark.plain,
    # Lightning's advice, as a reader gets it too
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    # Lightning calls what jsonargparse deprecates.
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # It tries the modules of all callbacks, those that other tests made up too.
    pytest.mark.filterwarnings("ignore::jsonargparse._util.JsonargparseWarning"),
    pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`"),
]


@pytest.fixture(autouse=True)
def _as_for_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    policy = lightning_kernels.get_kernel_policy()
    lightning_kernels.set_kernel_policy("auto")
    yield
    lightning_kernels.set_kernel_policy(policy)


# What the code of a page prints, and how often at least. Layers are fused, or left alone because
# torch's were not slower.
PRINTS = {
    "README.md": (r"practices\.nn\.LayerNorm|no gain of 3 %|the whole step gains nothing", 2),
    "docs/advisor.md": (r"LP201", 1),
}


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(
    page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = run(ROOT / page, monkeypatch)
    assert all(len(reason.split()) > 1 for reason in reasons)
    text, least = PRINTS.get(page, ("", 0))
    assert len(re.findall(text, capsys.readouterr().out)) >= least


@pytest.mark.parametrize("page", PAGES)
def test_python_is_marked_so_that_it_runs(page: str) -> None:
    others = re.findall(r"^```(?:py|python3|pycon)$", (ROOT / page).read_text(), flags=re.MULTILINE)
    assert not others, "write ```python, and a reason above a block that can't run"


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    linked = re.findall(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)", prose)
    named = re.findall(
        r"`((?:tests|benchmarks|examples|kernels|lightning_practices)/[\w./]+)`", text
    )
    missing = [path for path in named if not (ROOT / path).exists()]
    missing += [path for path in linked if not (ROOT / page).parent.joinpath(path).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_links_elsewhere_are_well_formed(page: str) -> None:
    for link in re.findall(r"\]\((https?:[^)\s]+)\)", (ROOT / page).read_text()):
        parts = urlsplit(link)
        assert parts.scheme == "https", link
        assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc), link


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / page).read_text(), flags=re.MULTILINE)
        assert set(named) <= targets


TRAINER = """
```yaml
# config for: lightning-practices fit
trainer:
  max_epochs: 3
  callbacks:
    - class_path: lightning_practices.callbacks.EarlyStopping
      init_args: {monitor: val_loss, patience: 5}
```
"""
STOPPING = """
```yaml
# config for: lightning_practices.callbacks.EarlyStopping
monitor: val_loss
patience: 5
```
"""
OWN = """
```python
from lightning.pytorch.demos.boring_classes import BoringModel
class Net(BoringModel):
    def __init__(self, width: int = 1): super().__init__()
```
```yaml
# config for: lightning-practices fit
model: {class_path: train.Net, init_args: {width: 2}}
```
"""
CALLS = """
```sh
lightning-practices fit --model train.py:Net --trainer.max_epochs=10 \\
  --trainer.callbacks+=EarlyStopping --model.width=3  # trains
lightning-practices schedule lr --out rates.png
lightning-practices check train.py:Net --fix-nothing | head
```
"""


@pytest.mark.parametrize("text", [TRAINER, STOPPING, OWN, CALLS.replace("--fix-nothing", "--json")])
def test_a_block_that_is_right_passes(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.md").write_text(text)
    assert run(tmp_path / "page.md", monkeypatch) == []


@pytest.mark.parametrize(
    "text",
    [
        TRAINER.replace("patience", "patients"),
        TRAINER.replace("patience: 5", "patience: -5"),
        TRAINER.replace("EarlyStopping", "EarlyStoping"),
        STOPPING.replace("patience", "patients"),
        OWN.replace("width: 2", "width: wide"),
        OWN.replace("class Net", "class Other"),
        CALLS,
        CALLS.replace("--out", "--output"),
        CALLS.replace("trainer.max_epochs", "trainer.epochs"),
        "```python\n1 / 0\n```\n",
    ],
)
def test_a_block_that_is_wrong_fails(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.md").write_text(text)
    with pytest.raises((Exception, SystemExit)):
        run(tmp_path / "page.md", monkeypatch)


def test_a_block_is_left_out_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = '<!-- skip: next "needs a GPU" -->\n\n```python\n1 / 0\n```\n'
    (tmp_path / "page.md").write_text(block)
    assert run(tmp_path / "page.md", monkeypatch) == ["needs a GPU"]


RULES = {rule.id: rule for rule in (*all_rules(), *training_rules())}


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/practices/")])
def test_the_rules_of_a_card_are_the_advisors(page: str) -> None:
    lines = re.findall(r"^- (LP\d+) \((\w+)\): ([^;\n]*)", (ROOT / page).read_text(), re.MULTILINE)
    wrong = [
        line
        for line in lines
        if line[0] not in RULES
        or (RULES[line[0]].severity, RULES[line[0]].practice) != (line[1], line[2].strip())
    ]
    assert not wrong
