"""Unusual inputs that must work or raise a one-line error."""

import json
from pathlib import Path

import pytest

from src.cli import main
from tests.cli.tiny import TASKS, save_image, write_annotations, write_data, write_recipe


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images in two class folders."""
    for number in range(4):
        save_image(tmp_path / "photos" / "ab"[number % 2] / f"{number}.png", number)
    return tmp_path / "photos"


def test_the_output_folder_must_be_outside_the_source(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["prepare", "from-folder", str(photos), "--out", str(photos / "out")]
    assert main(given) == 2
    assert "is inside the source" in capsys.readouterr().err
    assert not (photos / "out").exists()


def test_error_names_a_folder_that_cannot_be_created(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "out")
    assert main(["prepare", "from-folder", str(photos), "--out", out]) == 2
    assert f"{out} could not be written (Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("from-folder", "FILE"), "is a file; expected folders"),
        (("from-coco", "gone.json"), "The annotation file gone.json does not exist"),
        (("from-coco", "FILE"), "is not json"),
        (
            ("from-masks", "--images", "PHOTOS", "--masks", "PHOTOS", "--mask-suffix", ".png"),
            "holds no images",
        ),
    ],
)
def test_wrong_paths_are_one_line_errors(
    command: tuple[str, ...],
    message: str,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)))
    named = {"FILE": str(tmp_path / "file"), "PHOTOS": str(photos)}
    given = [named.get(part, part) for part in command]
    assert main(["prepare", *given, "--out", str(tmp_path / "out")]) == 2
    assert message in (error := capsys.readouterr().err)
    assert "Traceback" not in error


def test_error_names_a_colour_table_that_is_not_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path / "data", "segmentation")
    (tmp_path / "table").write_bytes(bytes(range(256)))
    given = ["--images", str(tmp_path / "data/images"), "--masks", str(tmp_path / "data/masks")]
    given += ["--colours", str(tmp_path / "table"), "--out", str(tmp_path / "out")]
    assert main(["prepare", "from-masks", *given]) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err


def test_warning_about_validation_without_objects(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", "detection")
    write_annotations(tmp_path / "data" / "val.json", [(64, 48)] * 4, annotations=[])
    config = write_recipe(tmp_path, "detection", data | {"val_annotations": "val.json"})
    with pytest.warns(UserWarning, match=r"val\.json has no annotations, so every AP will be -1"):
        assert main(["fit", "-c", str(config), "--trainer.fast_dev_run", "true"]) == 0


@pytest.mark.parametrize("task", TASKS)
def test_one_pixel_wide_images_are_predicted(task: str, tmp_path: Path) -> None:
    for name, size in (("wide.png", (500, 1)), ("high.png", (1, 500)), ("dot.png", (1, 1))):
        save_image(tmp_path / "odd" / name, size=size)
    config = write_recipe(tmp_path, task, write_data(tmp_path / "data", task))
    assert main(["predict", "-c", str(config), "--data.predict_dir", str(tmp_path / "odd")]) == 0
    run = tmp_path / "runs" / task / "predict_0"
    if task == "detection":
        assert len(json.loads((run / "detections.json").read_text())["images"]) == 3
