"""Faults of annotation files: all kinds are reported together, each with a count and an example."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from src.cli import main
from tests.cli.tiny import save_image, write_annotations

SIZE = (64, 48)
TURNED = 6  # EXIF orientation: turn by 90 degrees clockwise to look at it


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Six images of 64x48 pixels in the folder images, with one box each."""
    for number in range(6):
        save_image(tmp_path / "images" / f"{number}.png", number, SIZE)
    path = write_annotations(tmp_path / "labels.json", [SIZE] * 6)
    edit(path, annotations=lambda a: a.pop("segmentation"))
    return path


def edit(path: Path, **changes: Any) -> None:
    """Change every entry of some lists of an annotation file."""
    content = json.loads(path.read_text())
    for part, change in changes.items():
        for entry in content[part]:
            change(entry)
    path.write_text(json.dumps(content))


def give_boxes(path: Path, *boxes: list[float]) -> None:
    """Replace the boxes of the first annotations."""
    given = iter(boxes)
    edit(path, annotations=lambda a: a.update(bbox=next(given, a["bbox"])))


def from_coco(path: Path) -> int:
    images, out = str(path.parent / "images"), str(path.parent / "out")
    return main(["prepare", "from-coco", str(path), "--images", images, "--out", out])


def exchange(entry: dict[str, Any]) -> None:
    entry["width"], entry["height"] = entry["height"], entry["width"]


def test_exchanged_width_and_height_are_named_and_boxes_are_not_blamed(
    labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(labels, images=exchange)
    give_boxes(labels, [50, 2, 10, 10])  # inside the image, outside of 48x64
    assert from_coco(labels) == 2
    error = capsys.readouterr().err
    assert f"6 of 6 images have another size than {labels} says" in error
    assert f"48x64 (width x height) for {labels.parent}/images/0.png, and the image is 64x48" in (
        error
    )
    assert "Exchange width and height in the json" in error
    assert "left out" not in error
    assert not (labels.parent / "out").exists()


@pytest.mark.parametrize("says", ["upright", "stored"])
def test_an_image_turned_by_exif_may_have_the_size_of_either_orientation(
    says: str, labels: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = TURNED
    for path in (labels.parent / "images").iterdir():
        Image.open(path).save(path, exif=exif)
    if says == "upright":
        edit(labels, images=exchange)
    assert from_coco(labels) == 0


def test_boxes_of_two_corners_are_refused(labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corners = [[30, 20, 60, 40], [40, 30, 64, 48], [20, 20, 60, 40], [30, 5, 62, 20]]
    give_boxes(labels, *corners)
    assert from_coco(labels) == 2
    error = capsys.readouterr().err
    assert f"4 of 6 boxes in {labels} reach past the edge of their image, but all" in error
    assert "annotation 1: [30, 20, 60, 40]" in error
    assert "write [x1, y1, x2 - x1, y2 - y1]" in error


def test_fewer_boxes_that_may_be_two_corners_are_a_note(
    labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give_boxes(labels, [30, 20, 60, 40], [20, 20, 60, 40])
    assert from_coco(labels) == 0
    note = "training clips them. Are they x1, y1, x2, y2? All would be inside;"
    assert note in capsys.readouterr().out


def test_boxes_past_the_edge_are_counted(labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    give_boxes(labels, [2, 2, 16, 16], [50, 10, 204, 20], [60, 2, 4.5, 10])
    assert from_coco(labels) == 0
    assert (
        f"note: 1 of 6 boxes in {labels} reaches past the edge of the image, by up to 190 pixels"
        " (the first is annotation 2); training clips it\n"
    ) in capsys.readouterr().out
    # Most reach past the edge, but one is no box of two corners.
    give_boxes(labels, *[[30, 20, 60, 40]] * 5, [30, 20, 16, 16])
    assert from_coco(labels) == 0
    assert "5 of 6 boxes" in capsys.readouterr().out


def test_a_box_outside_is_left_out_and_not_called_clipped(
    labels: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    give_boxes(labels, [300, 300, 10, 10])
    assert from_coco(labels) == 0
    text = capsys.readouterr()
    assert "left out of training because of a box outside the image (id 1)" in (
        text.err + caplog.text
    )
    assert "past the edge" not in text.out
    give_boxes(labels, [300, 300, 10, 10], [50, 10, 204, 20])
    assert from_coco(labels) == 0
    assert "note: 1 of 6 boxes in" in (out := capsys.readouterr().out)
    assert "by up to 190 pixels (the first is annotation 2)" in out


def test_faults_of_all_kinds_are_reported_together(
    labels: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads(labels.read_text())
    content["annotations"][0]["bbox"] = [100, 100, 5, 5]
    content["annotations"][1]["bbox"] = [0, 0, 0, 0]
    content["annotations"][2]["category_id"] = 99
    content["annotations"][3]["image_id"] = 77
    extra = content["annotations"][3] | {"id": 70}
    content["annotations"].append(extra)
    del content["annotations"][4]["bbox"]
    labels.write_text(json.dumps(content))
    (labels.parent / "images" / "5.png").unlink()
    (labels.parent / "images" / "4.png").write_bytes(b"no image")
    save_image(labels.parent / "images" / "3.png", 3, (20, 20))
    assert from_coco(labels) == 2
    error = capsys.readouterr().err + caplog.text
    for line in (
        "1 annotation is left out of training because of a box outside the image (id 1)",
        "1 annotation is left out of training because of no area (id 2)",
        f"1 of 6 images of {labels} is not in",
        "1 of 6 images has another size",
        "1 of 5 images cannot be read; replace or remove it:",
        "the annotation 3 has category_id 99",
        "2 annotations of an unknown image_id; the first: the annotation 4 belongs to image_id 77",
    ):
        assert error.count(line) == 1, line
    assert "must have" not in error  # of an image that is named already


def test_classes_without_validation_images_lead_to_a_larger_share(
    labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(labels.read_text())
    content["categories"] += [{"id": 3, "name": "c"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = 1 + annotation["image_id"] % 3
    labels.write_text(json.dumps(content))
    assert from_coco(labels) == 0
    text = capsys.readouterr().out
    assert "so the metrics leave them out: 2 of 3 classes (" in text
    assert "; --val-share 0.5 measures more of them\n" in text
    out = ["--images", str(labels.parent / "images"), "--out", str(labels.parent / "out")]
    assert main(["prepare", "from-coco", str(labels), *out, "--val-share", "0.5"]) == 0
    assert "leave them out" not in capsys.readouterr().out


def test_faults_of_all_splits_are_reported_together(
    labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = labels.with_name("val.json")
    other.write_text(labels.read_text())
    edit(labels, images=lambda image: image.update(width="wide"))
    edit(other, annotations=lambda a: a.pop("bbox"))
    images, out = str(labels.parent / "images"), str(labels.parent / "out")
    given = ["prepare", "from-coco", str(labels), "--val-annotations", str(other)]
    assert main([*given, "--images", images, "--out", out]) == 2
    error = capsys.readouterr().err
    assert f"{labels}: 6 images with a wrong value; the first: the image 0 has height 48" in error
    assert f"{other}: 6 annotations without a value that is needed; the first: the anno" in error


def test_a_file_that_is_cut_off_is_called_so(
    labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels.write_bytes(labels.read_bytes()[:200])
    for images in ([], ["--images", str(labels.parent / "images")]):
        assert main(["prepare", "from-coco", str(labels), *images]) == 2
        assert "after 200 bytes: it seems to be cut off" in capsys.readouterr().err
