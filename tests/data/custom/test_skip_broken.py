"""``prepare --skip-broken`` with files that cannot be read, and classes of too few images."""

from pathlib import Path

import pytest
import yaml

from src.cli import build, main
from tests.cli.tiny import save_image, save_mask


def draw(folder: Path, readable: int, broken: int = 0) -> None:
    for number in range(readable + broken):
        path = save_image(folder / f"{number}.png", number, (20, 16))
        if number >= readable:
            path.write_bytes(b"no image")


def prepare(root: Path, *options: str) -> int:
    out = str(root.parent / "out")
    return main(["prepare", "from-folder", str(root), "--out", out, "--name", "x", *options])


def test_broken_images_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "in"
    draw(root / "cat", 4, broken=12)
    draw(root / "dog", 4)
    assert prepare(root) == 2
    error = capsys.readouterr().err
    assert "12 of 20 images cannot be read; replace or remove them, or leave out such" in error
    assert prepare(root, "--skip-broken") == 0
    text = capsys.readouterr().out
    assert "6 training and 2 validation images" in text
    assert "  cat: 3 + 1\n" in text
    assert "Checked: 8 of 20 images can be read\n" in text
    assert f"note: 12 images are left out (--skip-broken):\n  The image {root}/cat/10.png" in text
    assert "  and 2 more\n" in text
    assert len([*(tmp_path / "out").rglob("*.png")]) == 8


def test_broken_images_of_given_splits_are_skipped_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    for label in ("cat", "dog"):
        draw(root / "train" / label, 3, broken=label == "cat")
        draw(root / "val" / label, 1)
    assert prepare(root, "--skip-broken") == 0
    text = capsys.readouterr().out
    assert "6 training and 2 validation images" in text
    assert "note: 1 image is left out (--skip-broken):\n" in text
    recipe = tmp_path / "out" / "x.yaml"
    assert yaml.safe_load(recipe.read_text())["data"]["init_args"]["broken_images"] == "skip"
    assert build(["--config", str(recipe)]).datamodule.class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("readable", "broken", "options", "message"),
    [
        (0, 0, [], "has no images; at least two are needed"),
        (1, 0, [], "has one image; at least two are needed"),
        (1, 3, ["--skip-broken"], "has one image that can be read; at least two are needed"),
        (0, 3, ["--skip-broken"], "has no images that can be read; at least two are needed"),
    ],
)
def test_a_class_of_too_few_images_leads_to_a_way_out(
    readable: int,
    broken: int,
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "in"
    for label in ("cat", "dog"):
        draw(root / label, 4)
    (root / "eel").mkdir()
    draw(root / "eel", readable, broken)
    assert prepare(root, *options) == 2
    error = capsys.readouterr().err
    assert f"The class 'eel' in {root} {message}" in error
    assert "move the folder elsewhere to continue without this class." in error
    (root / "eel").rename(tmp_path / "elsewhere")
    assert prepare(root) == 0


def test_a_class_of_a_split_without_a_readable_image_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    for label in ("cat", "dog"):
        draw(root / "train" / label, 3 * (label == "dog"), broken=1)
        draw(root / "val" / label, 1)
    assert prepare(root, "--skip-broken") == 2
    error = capsys.readouterr().err
    assert f"The class 'cat' in {root / 'train'} has no images that can be read; at least one" in (
        error
    )


def draw_pairs(root: Path, number: int) -> None:
    for index in range(number):
        save_image(root / "images" / f"{index}.jpg", index, (20, 16))
        save_mask(root / "masks" / f"{index}.png", (0, 1), (20, 16))


def prepare_masks(root: Path, *options: str) -> int:
    out = ["--out", str(root.parent / "out"), "--name", "x"]
    return main(["prepare", "from-masks", str(root), *out, *options])


def test_incomplete_and_broken_pairs_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    draw_pairs(root, 9)
    (root / "masks" / "1.png").unlink()
    assert prepare_masks(root) == 2
    error = capsys.readouterr().err
    assert "1 of 9 images in" in error
    assert "Or leave out such images with --skip-broken." in error
    (root / "masks" / "2.png").write_bytes(b"no label map")
    (root / "images" / "3.jpg").write_bytes(b"no image")
    assert prepare_masks(root, "--skip-broken") == 0
    text = capsys.readouterr().out
    assert "5 training and 1 validation image;" in text
    first = f"{root}/images/1.jpg, whose label map should be named 1.png"
    assert f" no label map in {root} and is left out (--skip-broken); the first is {first}" in text
    assert "note: 2 files that cannot be read are left out, with the other one of the pair" in text
    assert "Checked: 7 of 8 images can be read, and all other label maps have their sizes" in text
    written = sorted(path.stem for path in (tmp_path / "out/annotations").rglob("*.png"))
    assert written == ["0", "4", "5", "6", "7", "8"]


def test_what_is_broken_is_refused_with_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    draw_pairs(root, 5)
    (root / "masks" / "2.png").write_bytes(b"no label map")
    assert prepare_masks(root) == 2
    error = capsys.readouterr().err
    assert "1 of 5 label maps cannot be read; replace or remove it, or leave out such" in error


def test_pairs_of_other_sizes_are_not_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    draw_pairs(root, 5)
    save_mask(root / "masks" / "2.png", (0, 1), (10, 8))
    assert prepare_masks(root, "--skip-broken") == 2
    assert "1 of 5 label maps has another size than the image" in capsys.readouterr().err


def test_images_of_which_none_has_a_label_map_are_not_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    draw_pairs(root, 3)
    for number in range(3):
        (root / "masks" / f"{number}.png").rename(root / "masks" / f"other{number}.png")
    assert prepare_masks(root, "--skip-broken") == 2
    assert "3 of 3 images" in capsys.readouterr().err
