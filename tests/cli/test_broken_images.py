"""Unreadable images in prediction, evaluation and training, for all three tasks."""

import csv
import json
from pathlib import Path

import pytest

from src.cli import main
from tests.cli.tiny import TASKS, save_image, write_data, write_recipe

BROKEN = ("1_truncated.png", "3_empty.jpg", "4_text.jpg", "5_gone.png")
READABLE = ("0.png", "2.png", "6.png", "sub/7.png")


@pytest.fixture
def holiday(tmp_path: Path) -> Path:
    """Eight images to predict, four of them unreadable, and a folder named like an image."""
    folder = tmp_path / "holiday"
    for number, name in enumerate((*READABLE, BROKEN[0])):
        save_image(folder / name, number)
    content = (folder / BROKEN[0]).read_bytes()
    (folder / BROKEN[0]).write_bytes(content[: len(content) // 2])
    (folder / BROKEN[1]).touch()
    (folder / BROKEN[2]).write_text("no image")
    (folder / BROKEN[3]).symlink_to("nowhere.png")
    (folder / "folder.jpg").mkdir()
    return folder


def predict(tmp_path: Path, task: str, folder: Path, *flags: str) -> int:
    config = write_recipe(tmp_path, task, write_data(tmp_path / "data", task))
    return main(["predict", "-c", str(config), "--data.predict_dir", str(folder), *flags])


def predicted(tmp_path: Path, task: str) -> list[str]:
    """Files in the table of the newest prediction, or its label maps."""
    run = sorted((tmp_path / "runs" / task).glob("predict_*"))[-1]
    if task == "classification":
        with (run / "predictions.csv").open() as file:
            return [Path(row["path"]).name for row in csv.DictReader(file)]
    if task == "detection":
        content = json.loads((run / "detections.json").read_text())
        return [Path(image["file_name"]).name for image in content["images"]]
    return sorted(path.name for path in (run / "label_maps").rglob("*.png"))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_prediction_skips_and_lists_unreadable_images(
    task: str, batch_size: int, tmp_path: Path, holiday: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--data.eval_batch_size", str(batch_size), "--data.num_workers", str(batch_size // 3))
    assert predict(tmp_path, task, holiday, *flags) == 2
    assert predicted(tmp_path, task) == [Path(name).name for name in READABLE]
    error = capsys.readouterr().err
    assert "error: 4 images could not be read and have no prediction" in error
    for name, reason in zip(
        BROKEN,
        ("truncated", "is empty", "its content is not JPEG", "a link to nowhere.png, which"),
        strict=True,
    ):
        (line,) = (line for line in error.splitlines() if name in line)
        assert reason in line
    assert "Traceback" not in error


def test_unreadable_images_can_be_accepted(tmp_path: Path, holiday: Path) -> None:
    with pytest.warns(UserWarning, match="4 images could not be read") as warned:
        assert predict(tmp_path, "detection", holiday, "--data.broken_images", "skip") == 0
    assert not any("--data.broken_images" in str(warning.message) for warning in warned)
    assert predicted(tmp_path, "detection") == [Path(name).name for name in READABLE]


@pytest.mark.parametrize("task", TASKS)
def test_all_images_are_unreadable(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        (tmp_path / "all" / f"{number}.jpg").parent.mkdir(exist_ok=True)
        (tmp_path / "all" / f"{number}.jpg").write_bytes(b"nothing")
    assert predict(tmp_path, task, tmp_path / "all") == 2
    shown = capsys.readouterr()
    assert "error: Nothing was predicted: no image could be read:\n  " in shown.err
    assert "other predictions" not in shown.err
    assert "Results:" not in shown.out  # there is no folder
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("fault", "status"), [("false", 130), ("true", 1)])
@pytest.mark.parametrize("task", TASKS)
def test_an_interrupted_prediction_keeps_its_results(
    task: str, fault: str, status: int, tmp_path: Path, holiday: Path
) -> None:
    stop = ("--trainer.callbacks+=tests.cli.interrupt.InterruptSecondBatch",)
    stop += ("--trainer.callbacks.fault", fault, "--data.eval_batch_size", "3")
    assert predict(tmp_path, task, holiday, *stop) == status
    assert predicted(tmp_path, task) == ["0.png", "2.png"]


@pytest.mark.parametrize("task", TASKS)
def test_a_link_to_a_deleted_training_image(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_recipe(tmp_path, task, write_data(tmp_path / "data", task)))
    for path in (tmp_path / "data").rglob("1.png"):
        if path.parent.name != "masks":
            path.unlink()
            path.symlink_to("/photos/gone.png")
    assert main(["fit", "-c", config]) == 2
    error = capsys.readouterr().err
    assert "1.png cannot be read: it is a link to /photos/gone.png, which does not exist" in error
    if task != "detection":  # whose images stay in place
        assert "run it again (with --mode copy" in error
    assert "or skip such files with --data.broken_images skip." in error


@pytest.mark.parametrize("task", TASKS)
def test_training_and_evaluation_can_skip_unreadable_images(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = write_data(tmp_path / "data", task)
    config = str(write_recipe(tmp_path, task, data))
    for path in (tmp_path / "data").rglob("1.png"):
        if path.parent.name != "masks":
            path.write_bytes(b"")
    assert main(["fit", "-c", config]) == 2
    assert "1.png cannot be read: the file is empty" in (error := capsys.readouterr().err)
    assert "--data.broken_images skip" in error
    assert main(["fit", "-c", config, "--data.broken_images", "skip"]) == 0
    assert "1 of 4 train images cannot be read and were skipped" in caplog.text
    assert "1 of 4 val images cannot be read and were skipped" in caplog.text
