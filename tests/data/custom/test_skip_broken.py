"""``prepare from-folder`` with images that cannot be read and classes of too few images."""

from pathlib import Path

import pytest
import yaml

from src.cli import build, main
from tests.cli.tiny import save_image


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
