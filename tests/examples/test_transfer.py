"""The comparison of transfers, made as a user makes it, with shorter training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from examples import transfer
from lightning_practices.callbacks import ProgressiveUnfreezing, write_schedule
from lightning_practices.schedules import cosine_decay
from tests.examples.scripts import assert_like_the_committed, run_main

# That of a network that is frozen: what the comparison is about.
pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")


@pytest.fixture(autouse=True)
def _keep_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # those of all tests


@pytest.fixture(scope="module")
def task() -> transfer.Task:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "PRETRAINING", (32, 4))
        return transfer.digits_task(seed=0, epochs=6)


@pytest.fixture(scope="module")
def schedule(task: transfer.Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schedule") / "unfreezing.yaml"
    write_schedule(transfer.equal_phases(task), path)
    return path


def parts(network: nn.Module, *, head: bool) -> dict[str, Tensor]:
    return {
        name: value.clone()
        for name, value in network.state_dict().items()
        if name.startswith(("head", "fc")) == head
    }


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def digits_by_image() -> dict[tuple[float, ...], int]:
    pixels, labels = load_digits(return_X_y=True)
    return {tuple(row.tolist()): int(label) for row, label in zip(pixels, labels, strict=True)}


def digits_of(x: Tensor) -> list[int]:
    known = digits_by_image()
    return [known[tuple(row.tolist())] for row in (16.0 * x).flatten(1)]


def test_an_image_of_each_digit_to_learn_and_all_others_of_its_half_to_test(
    task: transfer.Task,
) -> None:
    train, test = task.train, task.test
    assert isinstance(train, TensorDataset)
    assert isinstance(test, TensorDataset)
    (x, y), (x_test, y_test) = train.tensors, test.tensors
    assert y.tolist() == task.labels
    assert sorted(digits_of(x)) == list(range(transfer.DIGITS))
    assert y.tolist() == [digit % 2 for digit in digits_of(x)]
    assert y_test.tolist() == [digit % 2 for digit in digits_of(x_test)]
    seen = [tuple(row.tolist()) for row in torch.cat([x, x_test]).flatten(1)]
    assert len(set(seen)) == len(seen) == -(-len(digits_by_image()) // 2)


def test_the_network_knows_all_digits(task: transfer.Task) -> None:
    assert isinstance(task.test, TensorDataset)
    x, _ = task.test.tensors  # of the half that the pretraining didn't see
    network = task.pretrained.eval().cpu()
    with torch.no_grad():
        correct = network(x).argmax(1) == torch.tensor(digits_of(x))
    assert correct.float().mean() > 0.9


def test_all_start_from_one_head(task: transfer.Task, schedule: Path) -> None:
    pretrained = parts(task.pretrained, head=False)
    made = {method: transfer.prepare(method, task, 3, schedule)[0] for method in transfer.COLOURS}
    heads = [parts(network, head=True) for network in made.values()]
    assert all(equal(heads[0], head) for head in heads)
    assert not equal(heads[0], parts(task.pretrained, head=True))
    for method, network in made.items():
        assert equal(parts(network, head=False), pretrained) == (method != transfer.SCRATCH)
    another, _ = transfer.prepare(transfer.AT_ONCE, task, 4, schedule)
    assert not equal(heads[0], parts(another, head=True))


class Batches(Callback):
    """Keep the images of every step, the share of the first rate, and the phases."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []
        self.shares: list[float] = []
        self.phases: list[int] = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: list[Tensor], batch_idx: int
    ) -> None:
        self.images.append(batch[0].cpu())
        group = trainer.optimizers[0].param_groups[0]  # that of the head, if there are several
        self.shares.append(group["lr"] / group["initial_lr"])
        for callback in trainer.callbacks:
            if isinstance(callback, ProgressiveUnfreezing):
                self.phases.append(callback.phase)


def test_all_see_the_same_batches_and_train_what_they_say(
    task: transfer.Task, schedule: Path
) -> None:
    pretrained = parts(task.pretrained, head=False)
    expected = {
        transfer.AUTO: [1] * 5 + [2] * 5 + [3] * 20,
        transfer.PHASES: [1] * 10 + [2] * 10 + [3] * 10,
    }
    seen: dict[str, Batches] = {}
    for method in transfer.COLOURS:
        network, callbacks = transfer.prepare(method, task, 0, schedule)
        head = parts(network, head=True)
        seen[method] = Batches()
        model = transfer.Classifier(network, transfer.RATES[method])
        torch.manual_seed(len(seen))  # the order of batches is of no other random numbers
        run = transfer.fit(task, model, [*callbacks, seen[method]], 0)
        assert [*run] == [5, 10, 15, 20, 25, 30]
        assert seen[method].phases == expected.get(method, [])
        assert not equal(head, parts(network, head=True))
        is_kept = equal(parts(network.cpu(), head=False), pretrained)
        assert is_kept == (method == transfer.EXTRACTOR)
    first = torch.stack(seen[transfer.SCRATCH].images)
    cosine = [cosine_decay(30)(step) for step in range(30)]
    for batches in seen.values():
        assert torch.equal(first, torch.stack(batches.images))
        assert batches.shares == pytest.approx(cosine, abs=1e-12)
    assert cosine[-1] == 0
    assert equal(parts(task.pretrained, head=False), pretrained)


def test_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transfer, "PRETRAINING", (32, 1))
    out = tmp_path / "new"
    run_main(transfer, "--seeds", 2, "--epochs", 4, "--out", out)
    summary = json.loads((out / "summary.json").read_text())
    printed = capsys.readouterr().out
    ends = summary["test_accuracy_percent"]
    assert list(ends) == list(transfer.COLOURS)
    for method, values in ends.items():
        courses = summary["accuracies_by_step"][method]
        assert [list(course) for course in courses] == [["5", "10", "15", "20"]] * 2
        assert [100 * course["20"] for course in courses] == values
        assert all(5 < value < 100 for value in values)
        (row,) = (line for line in printed.splitlines() if method in line and "│" in line)
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        assert cells[:3] == [
            method, f"{transfer.RATES[method]:g}", transfer.spread(values)
        ]  # fmt: skip
        for cell, other in zip(cells[3:], (transfer.SCRATCH, transfer.AT_ONCE), strict=True):
            mean = sum(values) / 2 - sum(ends[other]) / 2
            assert float(cell.split(" ± ")[0]) == pytest.approx(mean, abs=0.051)
    assert any(one != other for one, other in summary["accuracies_by_step"].values())
    written = (out / "unfreezing.yaml").read_text()
    assert written in printed
    assert [phase.get("until") for phase in yaml.safe_load(written)] == [{"epoch": 1}] * 2 + [None]
    assert "steps of each fit: 20" in printed
    assert_like_the_committed(out / "transfer.png", transfer)


def test_rates_are_chosen_on_other_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    best = dict(zip(transfer.COLOURS, transfer.GRID, strict=True))

    def compare(
        make_task: Any, seeds: range, rates: dict[str, float], schedule: Path
    ) -> tuple[transfer.Runs, None]:
        assert seeds == range(100, 105)
        runs = {method: [{5: 1.0, 10: 0.5 + 0.2 * (rate == best[method])}] * len(seeds)
                for method, rate in rates.items()}  # fmt: skip
        return runs, None

    monkeypatch.setattr(transfer, "compare", compare)
    assert transfer.tune(transfer.digits_task, 10, tmp_path) == best  # type: ignore[arg-type]
    (row,) = (line for line in capsys.readouterr().out.splitlines() if transfer.AT_ONCE in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][1:] == [
        "50.0", "50.0", "70.0", "50.0", "50.0"
    ]  # fmt: skip


def make_folder(root: Path) -> Path:
    """Write images of two classes, horizontal and vertical stripes."""
    stripes = (torch.arange(64) // 8 % 2 * 255).to(torch.uint8)
    for part, count in (("train", 2), ("val", 1)):
        for name, shape in (("flat", (64, 1, 1)), ("upright", (1, 64, 1))):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                image = stripes.roll(i).view(shape).expand(64, 64, 3)
                Image.fromarray(image.numpy()).save(root / part / name / f"{i}.png")
    return root


@pytest.mark.filterwarnings("ignore:the fit has 1 optimizer step")
def test_a_network_of_torchvision_and_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = make_folder(tmp_path / "data"), tmp_path / "out"
    monkeypatch.setattr(transfer, "WORKERS", 0)
    rates = dict.fromkeys(transfer.COLOURS, 1e-4)
    monkeypatch.setattr(transfer, "tune", lambda *_: rates)
    options = ["--data", data, "--epochs", 1, "--out", out, "--tune"]
    run_main(transfer, "--weights", "none", *options)
    printed = capsys.readouterr().out
    assert "layer4.1" in printed
    assert "seeds: 1, steps of each fit: 1" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert summary["learning_rates"] == rates
    for values in summary["test_accuracy_percent"].values():
        assert len(values) == 1
        assert values[0] in (0, 50, 100)
    assert (out / "transfer.png").read_bytes().startswith(b"\x89PNG")
    phases = yaml.safe_load((out / "unfreezing.yaml").read_text())
    assert phases[0]["blocks"] == ["network.fc"]
    # The images are resized and cropped, and standardised, as the pretrained weights want it.
    made = transfer.folder_task(data, "resnet18", "none", epochs=1)
    image, label = made.train[0]
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    assert (tuple(image.shape), label, made.names) == ((3, 224, 224), 0, ["flat", "upright"])
    unit = image * deviation + mean
    assert unit.amin() == pytest.approx(0, abs=1e-6)
    assert unit.amax() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1"], "--seeds must be at least 2 and --epochs 1, got 1 and 40"),
        (["--epochs", "0"], "--epochs 1, got 10 and 0"),
        (["--weights", "DEFAULT"], "--weights and --data go together"),
        (["--data", "images"], "--weights and --data go together"),
        (["--model", "resnet18"], "--model needs --weights and --data"),
        (["--weights", "DEFAULT", "--data", "absent"], "there is no folder absent/train: make it"),
        (["--weights", "BEST", "--data", "data"], "no weights 'BEST': IMAGENET1K_V1"),
        (["--weights", "none", "--data", "data", "--model", "resnet1"], "Unknown model resnet1"),
        (
            ["--weights", "none", "--data", "data"],
            "train has ['flat', 'upright'], val has ['flat']",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_folder(tmp_path / "data") / "val" / "upright"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with pytest.raises(SystemExit) as stopped:
        run_main(transfer, *arguments)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()
