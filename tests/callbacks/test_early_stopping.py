"""``configs/callbacks/early_stopping.yaml`` with the metric of each task."""

from pathlib import Path

import pytest
import torch
import yaml

from src.callbacks import TaskEarlyStopping
from src.cli import main
from src.errors import UserError
from tests.cli.tiny import ROOT, write_data, write_recipe

MONITORS = {"classification": "val/top1", "detection": "val/bbox_AP", "segmentation": "val/mIoU"}
FILE = str(ROOT / "configs" / "callbacks" / "early_stopping.yaml")
NEVER_BETTER = ("--trainer.callbacks.min_delta", "1e6", "--trainer.callbacks.patience", "1")


@pytest.mark.slow
@pytest.mark.parametrize("task", MONITORS)
def test_training_stops_by_the_metric_of_the_task(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_recipe(tmp_path, task, write_data(tmp_path / "data", task))
    recipe = yaml.safe_load(config.read_text())
    recipe["trainer"] |= {"max_epochs": 9, "check_val_every_n_epoch": 1}
    config.write_text(yaml.safe_dump(recipe))
    assert main(["fit", "-c", str(config), "-c", FILE, *NEVER_BETTER]) == 0
    said = capsys.readouterr().out
    assert f"Early stopping: Monitored metric {MONITORS[task]} did not improve" in said
    (last,) = (tmp_path / "runs").glob("*/version_0/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["epoch"] == 1


def test_invalid_values_are_refused() -> None:
    with pytest.raises(UserError, match=r"TaskEarlyStopping.patience: expected 0 or more, got -1"):
        TaskEarlyStopping(patience=-1)
