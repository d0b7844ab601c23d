import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.callbacks import ClassPredictionWriter
from src.visualization import draw_classes


class Trainer:
    """The attributes of a trainer that the writer uses."""

    is_global_zero = True
    callbacks = ()

    class datamodule:  # noqa: N801
        class_names = ("heron", "stork")
        upright = False


def predict(writer: ClassPredictionWriter, paths: list[Path]) -> None:
    outputs = {
        "path": [str(path) for path in paths],
        "index": torch.tensor([[1, 0]] * len(paths)),
        "probability": torch.tensor([[0.75, 0.25]] * len(paths)),
    }
    writer.on_predict_start(Trainer(), None)
    writer.on_predict_batch_end(Trainer(), None, outputs, None, 0)
    writer.on_predict_end(Trainer(), None)


def image(path: Path, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.new("RGB", size, (200, 40, 40)).save(path)
    return path


def test_file_names_may_contain_any_bytes(tmp_path: Path) -> None:
    path = image(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")))
    predict(ClassPredictionWriter(str(tmp_path / "out")), [path])
    assert b"caf\xe9.png," in (tmp_path / "out" / "predictions.csv").read_bytes()


def test_table_and_images(tmp_path: Path) -> None:
    paths = [image(tmp_path / "in" / name) for name in ("b.png", "a.jpg")]
    predict(ClassPredictionWriter(str(tmp_path / "out")), paths)
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in rows] == ["a.jpg", "b.png"]
    assert rows[0]["class_1"] == "stork"
    assert (float(rows[0]["prob_1"]), float(rows[0]["prob_2"])) == (0.75, 0.25)
    assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == {"a.png", "b.png"}


def test_a_single_file_is_counted_in_the_singular(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(ClassPredictionWriter(str(tmp_path / "out")), [image(tmp_path / "a.png")])
    printed = capsys.readouterr().out
    assert "predictions.csv (1 file)\n" in printed
    assert "images (1 of 1 file)\n" in printed


def test_equal_names_do_not_overwrite_each_other(tmp_path: Path) -> None:
    paths = [image(tmp_path / folder / "cat.png") for folder in ("x", "y")]
    predict(ClassPredictionWriter(str(tmp_path / "out")), [*paths, image(tmp_path / "cat_1.jpg")])
    assert len(list((tmp_path / "out" / "images").iterdir())) == 3


@pytest.mark.parametrize(("limit", "drawn"), [(-1, 3), (2, 2), (0, 0)])
def test_number_of_images(tmp_path: Path, limit: int, drawn: int) -> None:
    paths = [image(tmp_path / f"{i}.png") for i in range(3)]
    predict(ClassPredictionWriter(str(tmp_path / "out"), max_images=limit), paths)
    assert len(list(tmp_path.glob("out/images/*.png"))) == drawn


@pytest.mark.parametrize("upright", [False, True])
def test_16_bit_images_are_drawn_as_the_network_sees_them(
    tmp_path: Path, deep_image: Path, monkeypatch: pytest.MonkeyPatch, upright: bool
) -> None:
    monkeypatch.setattr(Trainer.datamodule, "upright", upright)
    predict(ClassPredictionWriter(str(tmp_path / "out")), [deep_image])
    with Image.open(tmp_path / "out" / "images" / "deep.png") as drawn:
        assert drawn.getpixel((0, 0)) == (80, 80, 80)
        assert (drawn.height > 2 * drawn.width) == upright


def test_unreadable_images_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    paths = [image(tmp_path / "good.png"), tmp_path / "text.png"]
    with pytest.warns(UserWarning, match=r"Cannot draw an image: .*text\.png"):
        predict(ClassPredictionWriter(str(tmp_path / "out")), paths)
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == ["good.png"]


def test_no_predictions_write_nothing(tmp_path: Path) -> None:
    predict(ClassPredictionWriter(str(tmp_path / "out")), [])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [(8, 8), (40, 300), (2, 1500), (3000, 200), (640, 480)])
def test_annotations_are_legible_at_any_size(size: tuple[int, int]) -> None:
    names = ["a class with a name that is far too long for the image that it is written on", "b"]
    drawn = draw_classes(Image.new("L", size, 128), names, [0.9, 0.1])
    assert drawn.mode == "RGB"
    assert 360 <= drawn.width <= 1024
    assert drawn.height < 1300
    chart = np.asarray(drawn)[-150:]
    assert (chart < 60).all(-1).any()  # dark letters ...
    assert (chart > 240).all(-1).any()  # ... on white


def test_names_and_probabilities_belong_together() -> None:
    with pytest.raises(ValueError, match="got 1 names for 2 probabilities"):
        draw_classes(Image.new("RGB", (9, 9)), ["a"], [0.5, 0.5])
