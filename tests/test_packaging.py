"""What a user gets: a wheel, built from the source distribution, in an environment of its own."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import lightning_kernels
import lightning_practices

ROOT = Path(__file__).parents[1]

USE = """
import lightning_kernels, lightning_practices, torch
from lightning_practices import callbacks, mixins, nn, surgery
model = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Dropout(0.5))
report = surgery.fuse(model)
assert len(report.replaced) == 2, report
assert model(torch.randn(4, 8)).shape == (4, 8)
print(lightning_kernels.__file__, lightning_practices.__file__, sep="\\n")
"""


def call(*command: str | Path, cwd: Path) -> str:
    """Run a command away from the source tree and any ``PYTHONPATH``; return its output."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, and the wheel from it."""
    out = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return out


def test_the_wheel_holds_both_packages_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"lightning_kernels", "lightning_practices"}
    assert {"lightning_kernels/py.typed", "lightning_practices/py.typed"} <= set(names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    recipes = sorted(ROOT.glob("lightning_practices/recipes/*.yaml"))
    assert recipes
    assert {f"lightning_practices/recipes/{one.name}" for one in recipes} <= set(names)


def test_what_the_wheel_requires(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = message_from_bytes(archive.read(name))
    assert metadata["Version"] == lightning_kernels.__version__ == lightning_practices.__version__
    required: dict[str, set[str]] = {}
    for line in metadata.get_all("Requires-Dist", []):
        requirement = Requirement(line)
        extra = re.search(r"extra == ['\"](\w+)", str(requirement.marker or ""))
        required.setdefault(extra[1] if extra else "", set()).add(requirement.name)
    # torch pins the Triton that fits to it; pip would fetch another one before.
    assert not any("triton" in names for names in required.values())
    assert {"torch", "lightning"} <= required[""]
    with_plots = {extra for extra, names in required.items() if "matplotlib" in names}
    assert with_plots == {"plots", "dev", "examples", "bench", "recipes", "reproduce"}
    assert required["plots"] == {"matplotlib"}


def test_the_source_distribution_can_run_its_tests(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getnames()
    inner = {name.split("/", 1)[1] for name in members if "/" in name}
    wanted = {"pyproject.toml", "Makefile", "LICENSE", "CHANGELOG.md", "tests/conftest.py"}
    assert wanted <= inner


def test_the_wheel_works_in_an_empty_environment(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    options: list[str | Path] = ["--no-deps", "--no-index", wheel]
    call(sys.executable, "-m", "pip", "--python", python, "install", *options, cwd=tmp_path)
    site = Path(
        call(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path).strip()
    )
    # Its dependencies are borrowed, to spare gigabytes. A plain path takes no notice of the .pth
    # files behind it, so this project's own editable install there stays unseen.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    files = call(python, "-c", USE, cwd=tmp_path).split()
    assert all(Path(file).is_relative_to(site) for file in files), files
