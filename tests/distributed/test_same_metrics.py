"""Metrics do not depend on the number of ranks, even if it does not divide that of images."""

import csv
from pathlib import Path

import pytest

from tests.distributed.conftest import TASKS, Launcher, Run

BATCH = {"classification": "5", "detection": "3", "segmentation": "3", "pairs": "4"}


def metrics(run: Run) -> dict[str, float]:
    """Metrics of the newest evaluation by name."""
    newest = max(run.folder.glob("validate_*/metrics.csv"), key=lambda path: path.parts)
    with newest.open() as file:
        rows = list(csv.DictReader(file))
    return {name: float(v) for row in rows for name, v in row.items() if v and "/" in name}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("task", [*TASKS, "pairs"])
def test_several_ranks_have_the_metrics_of_one(
    launch: Launcher, tmp_path: Path, task: str, strategy: str
) -> None:
    flags = ("--data.eval_batch_size", BATCH[task])
    alone = metrics(launch(tmp_path, task, *flags, command="validate"))
    flags += ("--trainer.strategy", strategy)
    several = metrics(launch(tmp_path, task, *flags, command="validate", ranks=2, timeout=120))
    assert len(alone) >= 2
    assert several.keys() == alone.keys()
    for name, value in alone.items():
        # The loss is summed in another order; counts are equal.
        tolerance = 1e-5 if "loss" in name else 0.0
        assert several[name] == pytest.approx(value, abs=tolerance, nan_ok=True), name


@pytest.mark.slow
def test_a_rank_without_pairs_changes_nothing(launch: Launcher, tmp_path: Path) -> None:
    flags = ("--data.eval_batch_size", "16")  # more than there are
    alone = metrics(launch(tmp_path, "pairs", *flags, command="validate"))
    several = metrics(launch(tmp_path, "pairs", *flags, command="validate", ranks=2, timeout=120))
    assert several == pytest.approx(alone, abs=1e-5)
