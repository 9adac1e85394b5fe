"""The command ``lightning-practices``: what it prints, writes and returns."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_practices import __version__
from lightning_practices.advisor import all_rules, training_rules
from lightning_practices.callbacks import unfreezing_schedule
from lightning_practices.cli import main
from lightning_practices.cli._main import COMMANDS, LIGHTNING
from tests.cli.programs import Net, small

pytestmark = [
    pytest.mark.plain,
    pytest.mark.filterwarnings("ignore:.*tensorboardX. has been removed"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
]
NET, DATA = "tests.cli.programs.Net", "tests.cli.programs.Digits"
FIT = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu",
       "--trainer.enable_model_summary=false"]  # fmt: skip

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command adds to it


def test_help_names_every_command(capsys: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for command in (*LIGHTNING, *COMMANDS):
        assert re.search(rf"\n    {command}\s", shown)  # the text of a long name is below it


def test_an_own_process_starts_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lightning_practices", "--version"], capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.returncode) == (__version__, 0)


def test_check_finds_a_fault_and_says_so_by_its_status(capsys: Output) -> None:
    arguments = ["check", NET, DATA, "--trainer.logger=false"]
    assert main([*arguments, "--model.softmax=true", "--json", "--html", "report.html"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in report["findings"] if one["severity"] == "error"] == ["LP201"]
    assert report["findings"][0]["modules"] == ["net.4"]
    assert "net.4" in Path("report.html").read_text()
    assert main([*arguments, "--json", "report.json"]) == 0
    assert not [
        one
        for one in json.loads(Path("report.json").read_text())["findings"]
        if one["severity"] != "hint"
    ]


def test_check_shows_the_report_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lightning.pytorch")
    main(["check", NET, DATA, "--trainer.max_epochs=3"])
    assert caplog.messages == []


def test_check_selects_and_ignores_rules(capsys: Output) -> None:
    faulty = ["check", NET, DATA, "--model.softmax=true", "--trainer.logger=false"]
    assert main([*faulty, "--ignore", "LP2"]) == 0
    assert main([*faulty, "--select", "LP201"]) == 1
    shown = capsys.readouterr().out
    assert "applies softmax to the output of softmax" in " ".join(shown.split())
    assert "practice: Cross entropy gets logits, not probabilities" in shown


def test_check_asks_of_the_plan_where_the_trainer_has_options(capsys: Output) -> None:
    arguments = ["check", "tests.cli.programs.Plain", DATA, "--select", "LP614", "--json"]
    config = {"trainer": {"enable_checkpointing": False}}
    Path("trainer.yaml").write_text(yaml.safe_dump(config))
    found = []
    for more in ([], ["--trainer.max_epochs=2000", "--trainer.enable_checkpointing=false"],
                 ["--config", "trainer.yaml"]):  # fmt: skip
        assert main([*arguments, *more]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["checked"] == ["LP614"]
        found.append([one["id"] for one in report["findings"]])
    assert found == [[], ["LP614"], ["LP614"]]


def test_check_lists_the_rules(capsys: Output) -> None:
    assert main(["check", "--list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = {row[0]: row[1] for row in rows if row and re.fullmatch(r"LP\d{3}", row[0])}
    assert shown == {rule.id: rule.severity for rule in all_rules() + training_rules()}
    assert main(["check", "--list", "--select", "LP64", "--ignore", "LP644"]) == 0
    shown_ids = re.findall(r"LP\d{3}", capsys.readouterr().out)
    assert shown_ids == [rule.id for rule in all_rules() if rule.id[:4] == "LP64"][:-1]


def test_check_reads_the_file_of_a_fit(capsys: Output) -> None:
    config = {
        "model": {"class_path": NET, "init_args": {"softmax": True}},
        "data": {"class_path": DATA},
        "trainer": {"max_epochs": 3, "logger": False},
    }
    Path("fit.yaml").write_text(yaml.safe_dump(config))
    assert main(["check", "--config", "fit.yaml", "--select", "LP201"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "missing.py:Net"], "there is no file missing.py"),
        (["check", "trian.py:Net"], "there is no file trian.py: did you mean train.py?"),
        (["check", "train.py"], "train.py names a file and no class"),
        (["check", NET], "Net has no train_dataloader: name the class of a datamodule too"),
        (["recipe", "run", "digits", "--ckpt_path=last"], "finds no checkpoint"),
        (["validate", "--config", "digits", "--ckpt_path=no.ckpt"], "file not found: no.ckpt"),
        (["check", NET, DATA, "more"], "there are at most two classes"),
        (["check", NET, DATA, "--select", "LP999"], "begins no rule's identifier"),
        (["fuse", "resnt18"], "did you mean resnet18"),
        (["recipe", "show", "digtis"], "did you mean digits?"),
        (["recipe", "run", "zzz"], "there are ddp, digits"),
        (["recipe", "list", "--all"], "unrecognized arguments: --all"),
        (["fit", "--config", "digtis"], "did you mean digits?"),
        (["fit", "--config=fitt.yaml"], "there is no file fitt.yaml: did you mean fit.yaml?"),
        (["recipe", "run", "tabular", "--data.file=no.csv"], "there is no file no.csv"),
        (["recipe", "run", "image_folder_resnet18", "--data.root=no"], "there is no folder no"),
        (["recipe", "run", "digits", "--model.optimizer.lr=-1"], "lr has to be a finite number"),
        (["schedule", "lr", "cosin"], "did you mean 'cosine'?"),
        (["fuse", "no.such.Model"], "there is no module 'no'"),
        (["fuse", "tests.cli.programs.smal"], "did you mean small?"),
        (["fuse", "tests.cli.programs.weights"], "a Tensor, and no torch.nn.Module"),
        (["fuse", "resnet18", "--measure"], "--measure needs --input"),
        (["fuse", "resnet18", "--input", "8x3"], "whole numbers with commas"),
        (["schedule", "lr", "cosine", "--steps", "0"], "steps has to be"),
    ],
)
def test_wrong_calls_end_with_2_and_a_message(
    arguments: list[str], message: str, capsys: Output
) -> None:
    Path("fit.yaml").touch()
    Path("train.py").touch()
    earlier = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["fit", "--model", NET, "--model.widht=3"],
            f"{NET} has no argument 'widht' (did you mean 'width'?)",
        ),
        (["fit", "--model", NET, "--model.early_stoping=3"], "did you mean 'early_stopping'"),
        (["fit", "--model", NET, "--model.optimizer.lrr=3"], "Optimizer has no argument 'lrr'"),
        (["fit", "--model", NET, "--model.optimizer=adamv"], "--model.optimizer can't be 'adamv'"),
        (["fit", "--model", NET + "t"], "has no class 'Nett' (did you mean 'Net'?)"),
        (["fit", "--model", "nope.Net"], "there is no module 'nope'"),
        (["fit", "--modle", NET], "there is no option '--modle' (did you mean '--model'?)"),
        (["fit", "--config", "wrong.yaml"], "did you mean 'trainer.max_epochs'?"),
        (
            ["fit", "--model", NET, "--trainer.max_epochs=x"],
            "--trainer.max_epochs has to be int or null, but got 'x'",
        ),
        (
            ["fit", "--model", NET, "--model.width=x"],
            "--model.width has to be int, but got 'x'",
        ),
        (
            ["check", "train:Net", DATA],
            "check: train:Net is no class: give train.Net, or train.py:Net",
        ),
        (["check", DATA, NET], f"check: {DATA} is no LightningModule"),
        (["fit", "--model.width=3"], "--model.width comes without a class"),
        (["fit"], "a model is missing: give --model train.py:Net"),
        (["doctor", "--all"], "unrecognized arguments: --all"),
        (["traim"], "invalid choice: 'traim'"),
    ],
)
def test_bad_options_end_with_2_and_name_the_nearest(
    arguments: list[str], message: str, capsys: Output
) -> None:
    config = {"model": {"class_path": NET}, "trainer": {"max_epocs": 3}}
    Path("wrong.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) < 5 or arguments[0] not in LIGHTNING  # the reason alone


def test_fit_trains_a_class_of_a_file(capsys: Output) -> None:
    shutil.copy(Path(__file__).with_name("programs.py"), "train.py")
    classes = ["--model", "train.py:Net", "--data=train.py:Digits"]
    assert main(["fit", *classes, *FIT, "--trainer.max_epochs=2"]) == 0
    saved = next(Path().rglob("*.ckpt"))
    weights = torch.load(saved, weights_only=True)["state_dict"]
    assert {name: tuple(x.shape) for name, x in weights.items()}["net.1.weight"] == (16, 64)


def test_print_config_is_a_file_that_fit_takes(capsys: Output) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--model", NET, "--data", DATA, *FIT, "--print_config"])
    Path("all.yaml").write_text(capsys.readouterr().out)
    given = yaml.safe_load(Path("all.yaml").read_text())
    assert given["model"]["init_args"]["early_stopping"] == 10
    assert main(["fit", "--config", "all.yaml", "--trainer.fast_dev_run=true"]) == 0


def test_a_class_may_come_after_its_arguments(capsys: Output) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--model.width=5", "--model", NET, "--data", DATA, "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["width"] == 5


def test_an_error_below_an_own_step_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def logs_wrongly(self: Net, batch: Any, batch_idx: int) -> None:
        self.log("val/dataloader_idx_0", batch[0].mean())  # Lightning raises, below this line

    monkeypatch.setattr(Net, "validation_step", logs_wrongly)
    with pytest.raises(MisconfigurationException) as raised:
        main(["validate", "--model", NET, "--data", DATA, "--trainer.fast_dev_run=true"])
    assert any(place.name == "logs_wrongly" for place in raised.traceback)


def test_an_error_of_an_own_class_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own.py").write_text(
        f"from {NET.rpartition('.')[0]} import Net\n\n\nclass Bad(Net):\n"
        "    def __init__(self, **practices):\n        int('x')\n"
    )
    with pytest.raises(ValueError, match="invalid literal") as raised:
        main(["fit", "--model", "own.py:Bad"])
    assert str(raised.traceback[-1].path).endswith("own.py")


PRACTICES = {
    "optimizer": ("sgd", "lightning_practices.optim.Optimizer", "lr"),
    "schedule": ("step", "lightning_practices.schedules.LearningRateSchedule", "warmup_steps"),
    "early_stopping": (7, "lightning_practices.callbacks.EarlyStopping", "patience"),
    "gradient_clipping": (0.5, "lightning_practices.callbacks.GradientClipping", "algorithm"),
    "weight_averaging": ("ema", "lightning_practices.callbacks.WeightAveraging", "kind"),
    "penalty": (None, "lightning_practices.callbacks.Penalty", "l1"),
    "checkpoint": (False, "lightning.pytorch.callbacks.ModelCheckpoint", "save_top_k"),
    "exact_resume": (False, "lightning_practices.callbacks.ExactResume", None),
    "skip_non_finite": (3, "lightning_practices.callbacks.SkipNonFinite", None),
    "learning_curves": ("a.svg", "lightning_practices.callbacks.LearningCurves", "path"),
    "fuse_layers": (False, "lightning_practices.callbacks.FusedLayers", None),
    "initialization": ("auto", "lightning_practices.init.Initialization", "scheme"),
}


def test_print_config_is_complete_for_values_and_objects(capsys: Output) -> None:
    def printed(*options: str) -> dict[str, Any]:
        with pytest.raises(SystemExit):
            main(["fit", "--model", NET, *options, "--print_config"])
        given: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
        return given

    values = {name: value for name, (value, *_) in PRACTICES.items() if value is not None}
    given = printed(*(f"--model.{name}={value}" for name, value in values.items()))
    assert {name: given[name] for name in values} == values
    objects = {name: path for name, (_, path, _) in PRACTICES.items()}
    # A text is a path of the picture, so the object is given as in YAML.
    objects["learning_curves"] = f"{{class_path: {objects['learning_curves']}}}"
    required = ["--model.weight_averaging.kind=ema", "--model.schedule.name=cosine"]
    given = printed(*(f"--model.{name}={path}" for name, path in objects.items()), *required)
    for name, (_, path, argument) in PRACTICES.items():
        assert given[name]["class_path"] == path
        assert argument is None or argument in given[name]["init_args"]


def test_help_of_the_command_imports_no_torch() -> None:
    code = """
import sys
from lightning_practices.cli import main
for command in ("", "fit", "test", "recipe", "recipe run", "fuse", "schedule lr", "doctor"):
    try:
        main([*command.split(), "--help"])
    except SystemExit as ended:
        assert ended.code == 0
main(["recipe", "list"])
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("lightning-practices fit --model train.py:Net") == 1
    assert len(done.stdout.splitlines()) < 200


def test_bench_runs_the_benchmarks_of_a_checkout_or_says_where_they_are(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--help"])
    assert ended.value.code == 0
    assert "python -m benchmarks" in capsys.readouterr().out
    monkeypatch.setattr("lightning_practices.cli._bench._MODULE", "benchmarks.of_another_project")
    assert main(["bench", "kernels"]) == 2
    assert "check out the repository" in capsys.readouterr().err


def test_show_prints_a_file_that_fit_takes(capsys: Output) -> None:
    assert main(["recipe", "show", "digits"]) == 0
    Path("own.yaml").write_text(capsys.readouterr().out)
    assert main(["fit", "--config", "own.yaml", *FIT, "--trainer.fast_dev_run=true"]) == 0
    assert main(["check", "--config", "digits", "--trainer.logger=false"]) == 0


def test_fuse_lists_and_measures(capsys: Output) -> None:
    assert main(["fuse", "tests.cli.programs.small"]) == 0
    assert "torch.nn.LayerNorm" in capsys.readouterr().out
    assert main(["fuse", "tests.cli.programs.small", "--input", "8,4", "--measure"]) == 0
    assert main(["fuse", "timm:resnet18"]) == 0


def test_schedule_draws_and_writes(capsys: Output) -> None:
    pytest.importorskip("matplotlib")
    assert main(["schedule", "lr", "cosine", "--steps", "100", "--warmup-steps", "10"]) == 0
    assert Path("lr.png").read_bytes().startswith(b"\x89PNG")
    assert main(["schedule", "unfreezing", "tests.cli.programs.small", "--out", "own.yaml"]) == 0
    model = small()
    assert isinstance(model, nn.Sequential)
    assert yaml.safe_load(Path("own.yaml").read_text()) == unfreezing_schedule(model)


def test_doctor_names_versions_and_routes(capsys: Output) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert torch.__version__.partition("+")[0] in shown
    assert "is computed by aten" in shown
