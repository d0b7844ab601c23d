"""``prepare from-masks``: tables of classes, several extensions, two ways to give folders."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from src.cli import main
from tests.cli.tiny import save_image, save_mask


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Four images with the numbers 0, 1 and 3, in the folders images and masks."""
    root = tmp_path / "street"
    for number in range(4):
        save_image(root / "images" / f"{number}.jpg", number, (20, 16))
        values = np.repeat(np.array([0, 0, 1, 3], np.uint8), 5)[None].repeat(16, 0)
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(values).save(root / "masks" / f"{number}.png")
    return root


def prepare(street: Path, *options: str) -> tuple[int, Path]:
    out = street.parent / "out"
    return main(["prepare", "from-masks", *options, "--out", str(out), "--name", "street"]), out


def test_a_table_of_classes_gives_their_values(
    street: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = street.parent / "classes.csv"
    table.write_text("id,name\n1,road\n3,car\n")
    given = [str(street), "--class-names", str(table)]
    assert prepare(street, *given)[0] == 2
    assert f"hold the number 0, which is none of {table} (1, 3) and" in capsys.readouterr().err
    table.write_text("id,name\n5,road\n7,car\n")
    assert prepare(street, *given)[0] == 2
    error = capsys.readouterr().err
    assert f"hold the numbers 0, 1, 3, which are not in {table} (5, 7) and not 255" in error
    table.write_text("id,name\n1,road\n3,car\n")
    assert prepare(street, *given, "--ignore", "0", "3")[0] == 2
    assert f"3 is given in both {table} and --ignore." in capsys.readouterr().err
    status, out = prepare(street, *given, "--ignore", "0")
    assert status == 0
    printed = capsys.readouterr().out
    assert f"note: values of the classes are the numbers in {table}" in printed
    assert "np.array([1, 3])[label_map] has your numbers" in printed
    settings = yaml.safe_load((out / "street.yaml").read_text())["data"]["init_args"]
    assert settings["class_names"] == ["road", "car"]
    for path in out.glob("annotations/*/*.png"):
        assert np.unique(np.asarray(Image.open(path))).tolist() == [0, 1, 255]
    status, _ = prepare(street, *given, "--class-values", "0", "1", "--ignore", "3")
    assert status == 0
    assert "values of the classes are the numbers" not in capsys.readouterr().out


@pytest.mark.parametrize("named", [False, True])
def test_advice_about_the_values_can_be_followed(
    named: bool, street: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (street / "masks").iterdir():
        numbers = np.repeat(np.array([0, 10, 20, 30], np.uint8), 5)[None].repeat(16, 0)
        Image.fromarray(numbers).save(path)
    given = [str(street), "--ignore", "0", *["--class-names", "a", "b", "c"] * named]
    assert prepare(street, *given)[0] == 2
    error = capsys.readouterr().err
    assert "--class-values 10 20 30." in error
    assert "Give 30" not in error
    status, out = prepare(street, *given, "--class-values", "10", "20", "30")
    assert status == 0
    for path in out.glob("annotations/*/*.png"):
        assert np.unique(np.asarray(Image.open(path))).tolist() == [0, 1, 2, 255]


def test_all_classes_may_be_named_although_some_do_not_occur(
    street: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(street), "--class-names", "ground", "road", "car"]
    assert prepare(street, *given)[0] == 2
    error = capsys.readouterr().err
    assert "The label maps hold 0, 1, 3, and --class-names gives 3 names" in error
    assert "add --class-values 0 1 3. If all numbers from 0 to 3 are classes, give 4" in error
    assert prepare(street, *given, "building")[0] == 0


@pytest.mark.parametrize(("ignored", "is_told"), [("0", True), ("3", False)])
def test_numbers_of_predicted_label_maps(
    ignored: str, is_told: bool, street: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(street, str(street), "--ignore", ignored)[0] == 0
    note = "count the classes from 0, in the order of this list; add 1 to get your numbers, or"
    assert (note in capsys.readouterr().out) == is_told


@pytest.mark.parametrize(
    ("options", "own"),
    [
        (["--ignore", "0"], [1, 2, 3]),
        (["--ignore", "0", "--class-names", "a", "b", "c", "never"], [1, 2, 3, 4]),
        (["--class-names", "table.txt"], [0, 1, 3]),
        (["--snap"], [0, 255]),  # black and white
        (["--colours", "colours.txt"], [[0, 0, 0], [1, 1, 1], [3, 3, 3]]),
    ],
)
def test_predicted_label_maps_can_have_the_values_of_the_masks(
    options: list[str],
    own: list[object],
    street: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(street.parent)
    Path("table.txt").write_text("0 a\n1 b\n3 c\n")
    Path("colours.txt").write_text("#000000 a\n#010101 b\n#030303 c\n")
    status, out = prepare(street, str(street), *options)
    assert status == 0
    recipe = yaml.safe_load((out / "street.yaml").read_text())
    assert recipe["data"]["init_args"]["own_values"] == own
    given = ["predict", "-c", str(out / "street.yaml"), "--data.predict_dir", "street/images"]
    for values in ("classes", "own"):
        assert main([*given, "--label_maps.values", values]) == 0
    assert "; your values, " in capsys.readouterr().out
    for number in range(4):
        maps = (Path(f"runs/street/predict_{n}/label_maps/{number}.png") for n in range(2))
        classes, found = (np.asarray(Image.open(path)) for path in maps)
        assert (found == np.array(own)[classes]).all()


def test_a_table_from_zero_names_black_and_white_masks(
    street: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (street / "masks").iterdir():
        Image.fromarray(255 * (np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    (street.parent / "classes.txt").write_text("0 background\n1 car\n")
    assert prepare(street, str(street), "--class-names", f"{street.parent}/classes.txt")[0] == 0
    assert "  car: 3 + 1\n" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["folder", "both", "parent"])
def test_a_file_of_class_names_beside_the_label_maps_is_pointed_at(
    where: str, street: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside, apart = [str(street)], ["--images", f"{street}/images", "--masks", f"{street}/masks"]
    names = street / ("masks/classes.txt" if where == "both" else "classes.txt")
    names.write_text("sky\nroad\npole\ncar\n")
    given = inside if where == "folder" else apart
    assert prepare(street, *given)[0] == 0
    printed = capsys.readouterr().out
    option = f"--class-names {names}"
    assert f"note: {names} is not used; to name the classes by it, add {option}\n" in printed
    assert prepare(street, *given, *option.split())[0] == 0
    printed = capsys.readouterr().out
    assert "is not used" not in printed
    assert "  car: 3 + 1\n" in printed


def test_label_maps_may_have_several_extensions(street: Path) -> None:
    for number in (1, 3):
        path = street / "masks" / f"{number}.png"
        Image.open(path).save(path.with_suffix(".tif"))
        path.unlink()
    status, out = prepare(street, str(street))
    assert status == 0
    assert len([*out.glob("annotations/*/*.png")]) == 4


def test_both_ways_to_give_the_folders_are_the_same_source(
    street: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--images", str(street / "images"), "--masks", str(street / "masks")]
    assert prepare(street, str(street))[0] == 0
    assert prepare(street, *folders)[0] == 0
    assert prepare(street, str(street))[0] == 0
    street.rename(street.parent / "road")
    assert prepare(street, str(street.parent / "road"))[0] == 2
    assert f"was made from {street}, so nothing was written" in capsys.readouterr().err


def test_all_files_that_do_not_fit_are_counted(
    street: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        Image.new("L", (5, 6)).save(street / "masks" / f"{number}.png")
    (street / "masks" / "3.png").write_bytes(b"no image")
    (street / "images" / "0.jpg").write_bytes(b"no image")
    assert prepare(street, str(street))[0] == 2
    error = capsys.readouterr().err
    assert "1 of 4 images cannot be read; replace or remove it, or leave out" in error
    assert "1 of 4 label maps cannot be read; replace or remove it, or leave out" in error
    assert f"2 of 4 label maps have another size than the image; the first is {street}" in error
    assert f"1.png: 5x6, and its image {street}/images/1.jpg is 20x16 pixels (upright);" in error
    assert "EXIF" not in error


def test_label_maps_of_images_as_stored_are_called_so(
    street: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    path = street / "images" / "0.jpg"
    Image.open(path).save(path, exif=exif)
    assert prepare(street, str(street))[0] == 2
    error = capsys.readouterr().err
    assert "1 of 4 label maps has another size" in error
    assert "as they are stored, without the EXIF orientation: turn the label maps" in error


@pytest.mark.parametrize(
    ("shown", "advice"),
    [
        # Each class is in two images: half of them can be for validation.
        ([[0, 1], [0, 1], [2, 3], [2, 3], [0, 2]], "; --val-share 0.3 measures more of them\n"),
        ([[0], [1], [2], [3], [4]], "; add images of them\n"),
    ],
)
def test_classes_that_are_not_validated_lead_to_a_larger_share(
    shown: list[list[int]], advice: str, street: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, classes in enumerate(shown):
        save_image(street / "images" / f"{number}.jpg", number, (20, 16))
        save_mask(street / "masks" / f"{number}.png", tuple(classes), (20, 16))
    assert prepare(street, str(street))[0] == 0
    (note,) = [
        line
        for line in capsys.readouterr().out.splitlines(keepends=True)
        if line.startswith("note: no validation label map shows")
    ]
    assert note.endswith(advice)
    if "--val-share" in advice:
        assert prepare(street, str(street), "--val-share", "0.3")[0] == 0
        assert "note: no validation label map" not in capsys.readouterr().out
