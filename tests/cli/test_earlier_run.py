"""A run folder and a checkpoint that an earlier version has written resume, predict and export."""

import shutil
from pathlib import Path

import pytest

from src.cli import main

EARLIER = Path(__file__).parents[1] / "fixtures" / "earlier_run"


@pytest.fixture
def earlier(tmp_path: Path, images: Path) -> list[str]:
    """Arguments that name the earlier run, with its own configuration."""
    folder = tmp_path / "runs" / "tiny" / "version_0"
    shutil.copytree(EARLIER, folder)
    return [
        *("--config", str(folder / "config.yaml"), "--data.root", str(images)),
        *("--trainer.default_root_dir", str(tmp_path / "runs"), "--ckpt_path", "last"),
    ]


def test_it_goes_on(earlier: list[str], tmp_path: Path) -> None:
    assert main(["fit", *earlier, "--trainer.max_epochs", "3"]) == 0
    assert (tmp_path / "runs" / "tiny" / "version_1" / "checkpoints" / "last.ckpt").is_file()


def test_it_predicts(earlier: list[str], images: Path, tmp_path: Path) -> None:
    assert main(["predict", *earlier, "--data.predict_dir", str(images / "val" / "red")]) == 0
    table = tmp_path / "runs" / "tiny" / "predict_0" / "predictions.csv"
    assert len(table.read_text().splitlines()) == 1 + 4


def test_it_is_exported(earlier: list[str], tmp_path: Path) -> None:
    out = tmp_path / "exported"
    assert main(["export", *earlier, "--out", str(out), "--format", "safetensors"]) == 0
    assert (out / "model.safetensors").is_file()
