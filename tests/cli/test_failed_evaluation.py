"""An evaluation that fails before it has results leaves no folder."""

from pathlib import Path
from typing import NoReturn

import pytest

from src.cli import main
from src.tasks import SegmentationTask
from tests.cli.tiny import write_data, write_recipe


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Settings of a recipe with splits for all commands, and a folder of images to predict."""
    data = write_data(tmp_path / "data", "segmentation")
    data |= {"test_images": "images", "test_labels": "masks"}
    data |= {"predict_dir": str(tmp_path / "data" / "images")}
    return ["-c", str(write_recipe(tmp_path, "segmentation", data))]


def test_a_broken_image_in_the_second_batch(arguments: list[str], tmp_path: Path) -> None:
    assert main(["validate", *arguments]) == 0
    runs = tmp_path / "runs" / "segmentation"
    kept = sorted(runs.rglob("*"))
    assert runs / "validate_0" / "metrics.csv" in kept
    (tmp_path / "data" / "images" / "3.png").unlink()
    (tmp_path / "data" / "images" / "3.png").symlink_to("gone.png")
    assert main(["validate", *arguments]) == 2
    assert sorted(runs.rglob("*")) == kept


@pytest.mark.parametrize(
    ("command", "step"),
    [("validate", "validation_step"), ("test", "test_step"), ("predict", "predict_step")],
)
def test_an_error_in_the_first_batch(
    command: str,
    step: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> NoReturn:
        assert (tmp_path / "runs" / "segmentation" / f"{command}_0" / "config.yaml").exists()
        raise RuntimeError("no memory")

    monkeypatch.setattr(SegmentationTask, step, fail)
    assert main([command, *arguments]) == 1
    assert not (tmp_path / "runs").exists()


def test_metrics_are_results(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise RuntimeError("too late")

    monkeypatch.setattr(SegmentationTask, "on_validation_end", fail)
    assert main(["validate", *arguments]) == 1
    assert (tmp_path / "runs" / "segmentation" / "validate_0" / "config.yaml").exists()
