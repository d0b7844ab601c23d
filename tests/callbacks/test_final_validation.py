"""The last weights of a run are always validated; an epoch of the recipe has three batches."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from src.cli import main

EPOCHS, STEPS = "--trainer.max_epochs", "--trainer.max_steps"
EVERY, INTERVAL = "--trainer.check_val_every_n_epoch", "--trainer.val_check_interval"


@pytest.mark.parametrize(
    ("flags", "validated_steps"),
    [
        ((EPOCHS, "3", EVERY, "2"), [6, 9]),
        ((EPOCHS, "1", EVERY, "5"), [3]),
        ((EPOCHS, "2", EVERY, "null", INTERVAL, "4"), [4, 6]),
        ((EPOCHS, "2", INTERVAL, "2"), [2, 5, 6]),
        ((EPOCHS, "-1", STEPS, "4", EVERY, "5"), [4]),
        ((EPOCHS, "2"), [3, 6]),
        ((EPOCHS, "2", EVERY, "2", "--trainer.max_time", '{"microseconds": 1}'), [1]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_validation_after_the_last_step(
    tmp_path: Path, write_recipe: Callable[..., Path], flags: tuple[str, ...], validated_steps: list
) -> None:
    config = write_recipe(tmp_path)
    assert main(["fit", "-c", str(config), *flags, *_runs(tmp_path)]) == 0
    with (tmp_path / "runs/tiny/version_0/metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) + 1 for row in csv.DictReader(file) if row["val/top1"]]
    assert steps == validated_steps


def _runs(folder: Path) -> list[str]:
    return ["--trainer.default_root_dir", str(folder / "runs")]
