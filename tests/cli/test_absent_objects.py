"""Metrics of objects that no image has, which the COCO tools give as -1, and the best metric."""

import csv
import math
from pathlib import Path

import pytest

from src.cli import main
from tests.cli.tiny import ROOT, write_annotations, write_data, write_recipe


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A detector of images whose objects are all small."""
    monkeypatch.chdir(tmp_path)
    return write_recipe(Path(), "detection", write_data(tmp_path / "data", "detection"), "tiny")


def metrics_of(folder: Path) -> dict[str, float]:
    """Latest values of ``metrics.csv``."""
    with (folder / "metrics.csv").open() as file:
        return {k: float(v) for row in csv.DictReader(file) for k, v in row.items() if v}


def test_absent_sizes_have_no_value(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "-c", str(recipe)]) == 0
    text = capsys.readouterr().out
    assert "best-epoch=0.ckpt (val/bbox_AP 0.0%)\n" in text
    assert "Note:        nothing is detected correctly yet; train for more epochs\n" in text
    assert main(["validate", "--name", "tiny"]) == 0
    text = capsys.readouterr().out
    rows = dict(line.split() for line in text.splitlines() if line.startswith("bbox_A"))
    assert rows["bbox_AP_small"] == "0.0"
    assert rows["bbox_AP_large"] == rows["bbox_AR_medium"] == "-"
    assert "(-: no such objects are annotated)" in text
    for folder in ("version_0", "validate_0"):
        values = metrics_of(Path("runs/tiny") / folder)
        assert values["val/bbox_AP_small"] == 0
        assert math.isnan(values["val/bbox_AP_large"])


def test_images_without_any_object_have_no_best_epoch(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_annotations(tmp_path / "data/empty.json", [(64, 48)] * 4, annotations=[])
    fit = ["fit", "-c", str(recipe), "--data.val_annotations", "empty.json"]
    with pytest.warns(UserWarning, match=r"val/bbox_AP is nan, so this epoch cannot be the best"):
        assert main(fit) == 0
    text = capsys.readouterr().out
    assert "Best:" not in text
    assert "Last:" in text
    with pytest.warns(UserWarning, match=r"val/bbox_AP is nan"):
        assert main([*fit, "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    stopping = [str(ROOT / "configs" / "callbacks" / "early_stopping.yaml")]
    longer = ["--trainer.max_epochs", "4", "--trainer.callbacks.patience", "2"]
    capsys.readouterr()
    with pytest.warns(UserWarning, match=r"val/bbox_AP is nan"):
        assert main([*fit, "-c", *stopping, *longer]) == 0
    text = capsys.readouterr().out
    assert "Early stopping: Monitored metric val/bbox_AP did not improve in the last 2" in text
