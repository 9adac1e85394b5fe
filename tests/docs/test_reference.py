"""The reference has each public name, once, and links to other projects by their patterns."""

import re
import sys
from importlib import import_module

import pytest

from tests.docs.pages import ROOT

pytestmark = pytest.mark.plain
sys.path.insert(0, str(ROOT / "docs" / "_ext"))
public_names, other_projects = import_module("public_names"), import_module("other_projects")
sys.path.pop(0)


@pytest.mark.parametrize("room", public_names.PACKAGES)
def test_the_page_of_a_package_has_each_public_name_once(room: str) -> None:
    page = ROOT / "docs" / "api" / f"{room.rpartition('.')[2]}.md"
    tables = re.findall(r"^\.\. autosummary::\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    listed = re.findall(r"^   (\w+)$", "".join(tables), flags=re.M)
    assert sorted(listed) == sorted(import_module(room).__all__)


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
        ("rich.console.Group", "reference/console.html#rich.console.Group"),
        ("os.PathLike", "library/os.html#os.PathLike"),
    ],
)
def test_a_name_of_another_project_is_linked_to_its_page(name: str, link: str) -> None:
    address = other_projects.address(name)
    assert address is not None
    assert address.endswith(f"/{link}")


@pytest.mark.parametrize("name", ["torch.nn.Linaer", "torch._C._foo", "elsewhere.Linear"])
def test_a_name_that_is_not_there_is_not_linked(name: str) -> None:
    assert other_projects.address(name) is None
