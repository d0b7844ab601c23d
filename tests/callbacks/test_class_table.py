"""Printed results are in percent, files contain fractions."""

import csv
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from src.callbacks.class_table import class_rows, legend, summary
from src.cli import main


def test_means_are_in_percent_and_losses_as_logged() -> None:
    task = SimpleNamespace(score_names=lambda: {"val/top1", "val/top5"})
    metrics = {
        "val/loss": torch.tensor(1.25),
        "val/top1": torch.tensor(0.4567),
        "val/loss_raw": torch.tensor(1.5),
        "val/top1_raw": torch.tensor(0.25),
        "train/loss": torch.tensor(3.0),
    }
    assert summary(metrics, task, "val") == [
        "\nResults of the validation images (percent, but not the loss)",
        "          EMA      raw",
        "top1     45.7     25.0",
        "loss   1.2500   1.5000",
    ]


def test_says_that_test_images_are_those_of_validation() -> None:
    task = SimpleNamespace(score_names=lambda: {"test/top1"})
    title, _ = summary({"test/top1": torch.tensor(0.5)}, task, "test", "val")
    assert title == "\nResults of the validation images, as there are no test images (percent)"


def test_abbreviations_are_explained() -> None:
    assert legend(["val/mAcc", "val/mIoU", "val/loss", "test/aAcc"], "val") == [
        "(mIoU: IoU, mean of the classes; mAcc: pixels that are right, mean of the classes)"
    ]
    assert legend(["val/bbox_AR_100", "val/segm_AR_100"], "val") == [
        "(AR_100: recall with at most 100 detections per image)"
    ]
    assert legend(["val/loss"], "val") == []


def test_classes_that_do_not_occur_have_no_percentage() -> None:
    scores = {
        "pixels": torch.tensor([3, 0]),
        "IoU": torch.tensor([0.5, math.nan]),
        "Acc": torch.tensor([1.0, math.nan]),
    }
    head, *rows = (line.split() for line in class_rows(["sky", "sea"], scores))
    assert head == ["class", "pixels", "IoU", "Acc"]
    assert rows == [["sky", "3", "50.0", "100.0"], ["sea", "0", "-", "-"]]


def test_validation_of_a_classifier(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    folder = ["--trainer.default_root_dir", str(tmp_path)]
    assert main(["validate", "--ckpt_path", "runs/tiny/version_0", *folder]) == 0
    text = capsys.readouterr().out
    assert "Validate metric" not in text  # Lightning's table
    assert text.index("top1") < text.index("blue")
    with (tmp_path / "tiny/validate_0/classes_val.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["class", "images", "accuracy"]
    assert [row["images"] for row in rows] == ["4", "4", "4"]
    classes = {row["class"]: float(row["accuracy"]) for row in rows}
    with (tmp_path / "tiny/validate_0/confusion_val.csv").open() as file:
        confusion = {row["class"]: row for row in csv.DictReader(file)}
    for name, accuracy in classes.items():
        counts = [int(confusion[name][other]) for other in classes]
        assert sum(counts) == 4
        assert accuracy == int(confusion[name][name]) / 4
    with (tmp_path / "tiny/validate_0/metrics.csv").open() as file:
        (metrics,) = csv.DictReader(file)
    assert float(metrics["val/top1"]) == pytest.approx(sum(classes.values()) / 3)


def test_the_table_can_be_turned_off(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    flags = ["--verbose", "false", "--trainer.default_root_dir", str(tmp_path)]
    assert main(["test", "--ckpt_path", "runs/tiny/version_0", *flags]) == 0
    assert "Results of the" not in capsys.readouterr().out
    assert (tmp_path / "tiny/test_0/classes_test.csv").is_file()
