"""Layouts in which people keep images and labels: splits of any name, label maps beside images."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from src.cli import main
from src.data.formats.splits import split_of
from tests.cli.tiny import save_image, save_mask


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("Training", "train"), ("TRAIN", "train"), ("train2017", "train"),
        ("val_2017", "val"), ("train-2019", "train"), ("2017", None), ("valid", "val"),
        ("Validation", "val"), ("val", "val"), ("dev", "val"), ("test", "test"),
        ("Testing", "test"), ("test_set", "test"), ("trains", None), ("value", None), ("cat", None),
    ],
)  # fmt: skip
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


def draw(root: Path, *folders: str, count: int = 2) -> Path:
    for seed, folder in enumerate(folders):
        for number in range(count):
            save_image(root / folder / f"{number}.jpg", 10 * seed + number, (20, 16))
    return root


def by_split(*splits: str) -> list[str]:
    return [f"{split}/{label}" for split in splits for label in ("cat", "dog")]


def from_folder(source: Path, tmp_path: Path) -> tuple[int, dict]:
    out = tmp_path / "out"
    status = main(["prepare", "from-folder", str(source), "--out", str(out), "--name", "x"])
    recipe = out / "x.yaml"
    return status, yaml.safe_load(recipe.read_text())["data"]["init_args"] if not status else {}


def test_the_folder_above_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = draw(tmp_path / "in", "photos/cat", "photos/dog", "other")
    assert from_folder(source, tmp_path)[0] == 0
    output = capsys.readouterr().out
    folders = f"(cat, dog); if these are the classes, give {source / 'photos'}"
    assert f"note: photos has no images itself, but folders {folders}" in output
    assert "note: other has" not in output


@pytest.mark.parametrize(
    ("splits", "counts"),
    [
        (("train", "valid", "test"), "4 training, 4 validation and 4 test"),
        (("Training", "Validation"), "4 training and 4 validation"),
        (("TRAIN", "VAL", "TEST"), "4 training, 4 validation and 4 test"),
        (("train", "test"), "2 training, 2 validation and 4 test"),
        (("images/train", "images/val"), "4 training and 4 validation"),
    ],
)
def test_splits_of_usual_names_are_used_as_they_are(
    splits: tuple[str, ...], counts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = draw(tmp_path / "in", *by_split(*splits))
    status, data = from_folder(source, tmp_path)
    assert status == 0
    assert f"{counts} images" in (text := capsys.readouterr().out)
    assert "  cat: " in text
    val = data.get("val_split", "val")
    for name in (data.get("train_split", "train"), val, data.get("test_split", val)):
        folder = Path(data["root"]) / name
        assert sorted(path.name for path in folder.iterdir()) == ["cat", "dog"]


@pytest.mark.parametrize(
    "folders",
    [
        ("test", "good", "bad"),  # a class of this name, with its images in it
        ("train", "car", "bus"),
        ("valid", "invalid"),
    ],
)
def test_a_class_may_have_the_name_of_a_split(folders: tuple[str, ...], tmp_path: Path) -> None:
    status, data = from_folder(draw(tmp_path / "in", *folders), tmp_path)
    assert status == 0
    assert sorted(p.name for p in (Path(data["root"]) / "train").iterdir()) == sorted(folders)


@pytest.mark.parametrize("splits", [("",), ("train", "test"), ("train", "val")])
def test_small_classes_and_broken_images_are_reported_together(
    splits: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = draw(tmp_path / "in", *(str(Path(split, name)) for split in splits for name in "abc"))
    first = source / splits[0]
    (first / "a" / "0.jpg").write_text("no image")
    for image in (first / "b").iterdir():
        image.unlink()
    assert from_folder(source, tmp_path)[0] == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == error.count("no images") == 1
    assert "1 of" in error
    assert "a/0.jpg cannot be read" in error
    assert not (tmp_path / "out").exists()


def test_test_images_without_classes_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = draw(tmp_path / "in", *by_split("train", "val"), "test", "docs/none", count=2)
    for image in (source / "docs" / "none").iterdir():
        image.unlink()
    save_image(source / "train" / "stray.jpg")
    assert from_folder(source, tmp_path)[0] == 0
    text = capsys.readouterr().out
    assert "note: test has no class folders" in text
    assert "note: docs holds no images and is left out" in text
    assert "note: images beside the class folders of train are left out: 1" in text


@pytest.mark.parametrize(
    ("folders", "found"),
    [
        ((*by_split("train", "val"), "extra"), "but extra is not"),
        ((*by_split("train", "val"), "extra/cat"), "but extra is not"),
        (by_split("test"), "no folder of training images"),
        (by_split("valid", "test"), "no folder of training images"),
        (by_split("train", "val", "valid"), "both mean the val split"),
        (("train", "test"), "hold no class folders"),
        (("train", "val", "test"), "holds the folders test, train, val"),
    ],
)
def test_something_in_between_is_refused_with_what_was_found(
    folders: tuple[str, ...], found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert from_folder(draw(tmp_path / "in", *folders), tmp_path)[0] == 2
    error = capsys.readouterr().err
    assert found in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_recipe_by_hand_is_told_the_name_of_the_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = draw(tmp_path / "in", *by_split("train", "valid"))
    config = "configs/classification/internimage_nano_96.yaml"
    runs = ["--trainer.default_root_dir", str(tmp_path / "runs")]
    assert main(["fit", "-c", config, "--data.root", str(source), *runs]) == 2
    assert "or set data.val_split to valid" in capsys.readouterr().err


def from_masks(tmp_path: Path, images: Path, masks: Path, *flags: str) -> int:
    given = ["--images", str(images), "--masks", str(masks)]
    given = [str(images)] if images == masks else given
    out = ["--out", str(tmp_path / "out"), "--name", "x"]
    return main(["prepare", "from-masks", *given, *out, *flags])


def label_maps(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out" / "annotations").rglob("*.png"))


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{}.jpg", "{}_mask.png"),
        ("{}.jpg", "{}-mask.png"),
        ("{}.jpg", "{}_label.png"),
        ("{}.jpg", "{}.mask.png"),
        ("{}.png", "{}_seg.png"),
        ("{}.jpg", "{}.png"),
        ("{}.png", "masks/{}.png"),
        ("images/{}.png", "masks/{}_mask.png"),
        ("a b/{}.jpg", "a b/{}_mask.tif"),
    ],
)
def test_label_maps_beside_their_images_are_found(image: str, mask: str, tmp_path: Path) -> None:
    root = tmp_path / "in"
    for number in (0, 1, 10, 2):
        save_image(root / image.format(number), number)
        save_mask(root / mask.format(number))
    assert from_masks(tmp_path, root, root) == 0
    assert label_maps(tmp_path) == ["0.png", "1.png", "10.png", "2.png"]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}.jpg", "masks/{}_mask.png"),
        ("images/{}.jpg", "masks/{}.bmp"),
        ("{}.jpg", "masks/{}.png"),
        ("images/x_{}_leftImg8bit.png", "masks/x_{}_gtFine_labelIds.png"),
    ],
)
def test_label_maps_in_another_folder_may_have_other_names(
    image: str, mask: str, tmp_path: Path
) -> None:
    root = tmp_path / "in"
    for number in range(4):
        save_image(root / image.format(number), number)
        save_mask(root / mask.format(number))
    assert from_masks(tmp_path, (root / image).parent, root / "masks") == 0
    assert len(label_maps(tmp_path)) == 4


def test_label_maps_that_are_missing_or_ambiguous_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    for number in range(4):
        save_image(root / f"{number}.jpg", number)
        save_mask(root / f"{number}_mask.png")
        save_mask(root / f"{number}_seg.png")
    assert from_masks(tmp_path, root, root) == 2
    assert "ending in _mask.png or in _seg.png; say which with --mask-suffix" in (
        capsys.readouterr().err
    )
    for path in root.glob("*_seg.png"):
        path.unlink()
    (root / "3_mask.png").unlink()
    assert from_masks(tmp_path, root, root) == 2
    assert "1 of 4 images" in (error := capsys.readouterr().err)
    assert "3.jpg, whose label map should be named 3_mask.png" in error


@pytest.mark.parametrize(
    ("image", "mask"),
    [("{}/{}.jpg", "{}/{}_mask.png"), ("{}/images/{}.jpg", "{}/masks/{}.png"),
     ("images/{}/{}.jpg", "masks/{}/{}.png")],
)  # fmt: skip
def test_splits_of_label_maps_are_used_as_they_are(
    image: str, mask: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    for split in ("train", "valid", "test"):
        for number in range(3):
            save_image(root / image.format(split, number), number)
            save_mask(root / mask.format(split, number))
    apart = image.startswith("images")
    folders = (root / "images", root / "masks") if apart else (root, root)
    assert from_masks(tmp_path, *folders) == 0
    assert "3 training, 3 validation and 3 test images" in capsys.readouterr().out
    data = yaml.safe_load((tmp_path / "out" / "x.yaml").read_text())["data"]["init_args"]
    assert data["test_images"] == "images/test"
    save_image(folders[0] / "more" / "9.jpg")
    beside = "masks" not in mask
    save_mask(root / ("more/9_mask.png" if beside else "masks/more/9.png"))
    assert from_masks(tmp_path, *folders) == 2
    assert "in none" in capsys.readouterr().err


def write_masks(root: Path, draw_mask, count: int = 4) -> tuple[Path, Path]:
    for number in range(count):
        save_image(root / "images" / f"{number}.jpg", number)
        path = root / "masks" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_mask(number).save(path)
    return root / "images", root / "masks"


def soft(number: int) -> Image.Image:
    """A white disc on black with soft edges."""
    y, x = np.mgrid[:48, :64]
    distance = np.hypot(x - 30 - number, y - 24)
    return Image.fromarray((255 * np.clip(15 - distance, 0, 1)).astype(np.uint8))


def odd_colours(number: int) -> Image.Image:
    """Two flat colours, with others in 2 % of the pixels."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, 32:] = (255, 128, 0)
    rows = np.arange(48)
    pixels[rows, 32] = np.stack([rows + 60, rows + 30, rows], -1)
    return Image.fromarray(pixels)


def stripes(*values: int):
    return lambda number: Image.fromarray(
        np.tile(np.array(values, np.uint8)[np.arange(64) * len(values) // 64], (48, 1))
    )


def own_palette(number: int) -> Image.Image:
    image = stripes(0, 1)(number)
    image.putpalette([0, 0, 0, 255, 0, 0] if number % 2 else [255, 0, 0, 0, 0, 0])
    return image


@pytest.mark.parametrize(
    ("mask", "flags", "message"),
    [
        (soft, (), "of them occur on edges only"),
        (stripes(0, 128, 255), (), "0 128 255. If 0 means unlabelled, leave it out and add"),
        (stripes(0, 128, 255), ("--class-names", "a", "b", "c"), "add --class-values 0 128 255."),
        (stripes(0, 255), ("--class-names", "a", "b", "c"), "--class-names gives 3 names"),
        (stripes(0, 9), ("--class-values", "0", "8"), "the number 9, which is none of"),
        (stripes(0, 1), ("--class-values", "0", "0"), "accepts different numbers"),
        (own_palette, (), "The palettes of the label maps differ"),
        (odd_colours, (), "48 further colours"),
        (odd_colours, ("--colours", "COLOURS"), "48 colours in 1.6% of its pixels"),
    ],
)
def test_label_maps_that_do_not_hold_classes_are_refused(
    mask, flags: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "colours.txt"
    table.write_text("#000000 ground\n#ff8000 thing\n")
    given = [str(table) if flag == "COLOURS" else flag for flag in flags]
    if message == "48 further colours":
        message = "30 further colours"  # twenty are listed
    assert from_masks(tmp_path, *write_masks(tmp_path, mask), *given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_photos_instead_of_label_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, masks = write_masks(tmp_path, soft)
    rng = np.random.default_rng(0)
    for path in masks.iterdir():
        size = Image.open(path).size
        photo = rng.integers(0, 256, (*reversed(size), 3), dtype=np.uint8)
        Image.fromarray(photo).save(path)
    assert from_masks(tmp_path, images, masks) == 2
    assert "Are --images and --masks swapped?" in capsys.readouterr().err


def test_jpeg_label_maps_are_refused_and_can_be_snapped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, masks = write_masks(tmp_path, soft)
    for path in sorted(masks.iterdir()):
        Image.open(path).save(path.with_suffix(".jpg"), quality=85)
        path.unlink()
    assert from_masks(tmp_path, images, masks) == 2
    assert "0.jpg is a JPEG file, which changes numbers" in capsys.readouterr().err
    assert from_masks(tmp_path, images, masks, "--snap") == 0
    assert "foreground: 3 + 1" in capsys.readouterr().out
    for path in (tmp_path / "out" / "annotations").rglob("*.png"):
        assert set(np.unique(Image.open(path))) == {0, 1}


@pytest.mark.parametrize(
    ("mask", "flags", "classes"),
    [
        (stripes(0, 128, 255), ("--class-values", "0", "128", "255"), {0, 1, 2}),
        (stripes(0, 255), (), {0, 1}),
        (stripes(0, 2, 255), (), {0, 2, 255}),
        (odd_colours, ("--colours", "COLOURS", "--snap"), {0, 1}),
        (lambda n: stripes(0, 1, 2)(n).convert("RGB"), (), {0, 1, 2}),
    ],
)
def test_label_maps_become_classes(mask, flags, classes, tmp_path: Path) -> None:
    (tmp_path / "colours.txt").write_text("#000000 ground\n#ff8000 thing\n")
    given = [str(tmp_path / "colours.txt") if flag == "COLOURS" else flag for flag in flags]
    assert from_masks(tmp_path, *write_masks(tmp_path, mask), *given) == 0
    for path in (tmp_path / "out" / "annotations").rglob("*.png"):
        assert set(np.unique(Image.open(path))) == classes


@pytest.mark.parametrize(
    ("mask", "flags", "is_noted"),
    [
        (stripes(0, 1), (), True),
        (stripes(0, 255), (), False),
        (stripes(0, 1), ("--ignore", "0"), False),
        (stripes(0, 1), ("--class-names", "road", "car"), False),
        (stripes(0, 1), ("--class-values", "0", "1"), False),
    ],
)
def test_zero_without_a_meaning_is_noted(
    mask, flags, is_noted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert from_masks(tmp_path, *write_masks(tmp_path, mask), *flags) == 0
    note = "note: 0 is a class of its own (class 0); if it means unlabelled, add --ignore 0;"
    assert (note in capsys.readouterr().out) == is_noted


@pytest.mark.parametrize("name", ["nams.txt", "labels/names"])
def test_a_file_of_class_names_that_does_not_exist_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = write_masks(tmp_path, stripes(0, 1))
    assert from_masks(tmp_path, *folders, "--class-names", name) == 2
    assert f"--class-names: the file {name} does not exist; expected" in capsys.readouterr().err


def test_classes_that_no_label_map_shows_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("--class-names", "road", "car", "tree")
    assert from_masks(tmp_path, *write_masks(tmp_path, stripes(0, 1)), *names) == 0
    assert "note: no training label map shows tree" in capsys.readouterr().out
