"""The reference has each public name, once, and links to other projects by their patterns."""

import pkgutil
import re
import sys
from importlib import import_module

import pytest

import lightning_practices
from tests.docs.pages import ROOT

pytestmark = pytest.mark.plain
ROOMS = (
    "lightning_kernels",
    *(
        f"lightning_practices.{room.name}"
        for room in pkgutil.iter_modules(lightning_practices.__path__)
        if room.ispkg and not room.name.startswith("_")
    ),
)
EXTENSIONS = ROOT / "docs" / "_ext"


@pytest.mark.parametrize("room", ROOMS)
def test_the_page_of_a_package_has_each_public_name_once(room: str) -> None:
    page = ROOT / "docs" / "api" / f"{room.rpartition('.')[2]}.md"
    tables = re.findall(r"^\.\. autosummary::\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    listed = re.findall(r"^   (\w+)$", "".join(tables), flags=re.M)
    assert sorted(listed) == sorted(import_module(room).__all__)


def test_the_list_of_packages_has_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(EXTENSIONS), *sys.path])
    assert sorted(import_module("public_names").PACKAGES) == sorted(ROOMS)


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("torch.nn.modules.linear.Linear", "generated/torch.nn.Linear.html#torch.nn.Linear"),
        ("torch.Tensor", "tensors.html#torch.Tensor"),
        ("torch.optim.Optimizer.step", "optim.html#torch.optim.Optimizer.step"),
        ("torch.nn.Module.state_dict", "generated/torch.nn.Module.html#torch.nn.Module.state_dict"),
        (
            "lightning.pytorch.callbacks.early_stopping.EarlyStopping",
            "api/lightning.pytorch.callbacks.EarlyStopping.html"
            "#lightning.pytorch.callbacks.EarlyStopping",
        ),
        (
            "lightning.pytorch.LightningModule",
            "api/lightning.pytorch.core.LightningModule.html"
            "#lightning.pytorch.core.LightningModule",
        ),
        ("os.PathLike", "library/os.html#os.PathLike"),
    ],
)
def test_a_name_of_another_project_is_linked_to_its_page(
    monkeypatch: pytest.MonkeyPatch, name: str, link: str
) -> None:
    monkeypatch.setattr(sys, "path", [str(EXTENSIONS), *sys.path])
    address = import_module("other_projects").address(name)
    assert address is not None
    assert address.endswith(f"/{link}")


@pytest.mark.parametrize("name", ["torch.nn.Linaer", "torch._C._foo", "elsewhere.Linear"])
def test_a_name_that_is_not_there_is_not_linked(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, "path", [str(EXTENSIONS), *sys.path])
    assert import_module("other_projects").address(name) is None
