"""Experiments that take no time, for tests; they run in processes of their own."""

import json
import os
import time
from pathlib import Path

import torch

from lightning_practices.reproduce import Column, Table


def lengths(seed: int, unit: float, log: str, offset: float = 0.0) -> dict[str, float]:
    """Return a length and its square, and note the call in a file."""
    with open(log, "a") as file:
        file.write(f"{unit} {offset} {seed}\n")
    length = unit * (1 + seed) + offset
    return {"length": length, "square": length**2}


def failing(seed: int, unit: float, log: str) -> dict[str, float]:
    """Fail for one setting."""
    if unit == 2 and seed == 1:
        raise ArithmeticError("the unit is 2")
    return lengths(seed, unit, log)


def killing(seed: int, unit: float, log: str) -> dict[str, float]:
    """End the process that started the runs once it has kept three of them, the first time."""
    done = Path(log).read_text().count("\n") if Path(log).exists() else 0
    if done == 3:
        while _kept(Path(log).with_name("lengths.json")) < 3:
            time.sleep(0.01)
        lengths(seed, unit, log)
        os.kill(os.getppid(), 9)
        time.sleep(60)
    return lengths(seed, unit, log)


def _kept(path: Path) -> int:
    return len(json.loads(path.read_text())["runs"]) if path.exists() else 0


def on_images(seed: int, unit: float, log: str, data: str) -> dict[str, float]:
    """Return the number of entries of a folder."""
    return {**lengths(seed, unit, log), "length": float(len(os.listdir(data)))}


def crowd(seed: int, unit: float, log: str) -> dict[str, float]:
    """Return how many processes there are beside this one at most, and its threads."""
    place = Path(log).with_suffix(f".{os.getpid()}")
    place.touch()
    time.sleep(0.2)
    return {"length": len([*place.parent.glob("*.[0-9]*")]), "square": torch.get_num_threads()}


def table(log: Path, experiment: object = lengths, **changes: object) -> Table:
    """Return a table of three rows."""
    arguments = {
        "name": "lengths",
        "title": "Lengths of units",
        "source": "S9, table 3",
        "claim": "two is twice one",
        "experiment": experiment,
        "rows": {f"unit {unit:g}": {"unit": unit, "log": str(log)} for unit in (1.0, 2.0, 3.0)},
        "columns": {
            "length": Column("length", "m", lecture={"unit 2": 2.5}),
            "square": Column("square", "m²", digits=2, more_is_better=False),
        },
        "reference": "unit 1",
        "tiny": {"unit": 0.5},
    }
    return Table(**{**arguments, **changes})  # type: ignore[arg-type]
