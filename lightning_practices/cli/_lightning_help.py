"""The short help of ``fit``, ``validate``, ``test`` and ``predict``."""

from collections.abc import Sequence

from lightning_practices.cli._main import LIGHTNING

_HELP = """\
usage: lightning-practices {command} [--config FILE|RECIPE] [--model CLASS] [--data CLASS] [OPTIONS]

{summary}, by Lightning's command line.

  --config FILE|RECIPE     a YAML file, or the name of a recipe; the options after it override it
  --model CLASS            a LightningModule: package.Class, or file.py:Class
  --model.NAME VALUE       an argument of its class
  --data CLASS             a LightningDataModule; without it, the module has the dataloaders
  --data.NAME VALUE        an argument of its class
  --trainer.NAME VALUE     an argument of the Trainer, such as max_epochs, devices or callbacks
  --ckpt_path PATH         {checkpoint}
  --seed_everything SEED   0 if it isn't given
  --print_config           print all settings as YAML, with defaults, instead of running

more help:
  lightning-practices {command} --model.help CLASS   the arguments of a class
  lightning-practices {command} --help all           all options of Lightning

{title}:
  lightning-practices {command} {example}
"""
_OWN = "--model train.py:Net --data train.py:Data"
_EXAMPLES = {
    "fit": f"{_OWN} --trainer.max_epochs=10\n  lightning-practices fit --config digits",
    "validate": f"{_OWN} --ckpt_path best.ckpt",
    "test": "--config fit.yaml --ckpt_path best.ckpt",
    "predict": "--config fit.yaml --ckpt_path best.ckpt",
}


def run(argv: Sequence[str]) -> int:
    """Print the help of a command of Lightning."""
    command = argv[0]
    summary = LIGHTNING[command]
    checkpoint = "a checkpoint to go on from" if command == "fit" else "the checkpoint to load"
    print(
        _HELP.format(
            command=command, summary=f"{summary[0].upper()}{summary[1:]}", checkpoint=checkpoint,
            example=_EXAMPLES[command], title="examples" if command == "fit" else "example",
        ),
        end="",
    )  # fmt: skip
    return 0
