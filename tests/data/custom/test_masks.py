"""``prepare from-masks``: tables of classes, several extensions, two ways to give folders."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from src.cli import main
from tests.cli.tiny import save_image


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


@pytest.mark.parametrize(("ignored", "is_told"), [("0", True), ("3", False)])
def test_numbers_of_predicted_label_maps(
    ignored: str, is_told: bool, street: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(street, str(street), "--ignore", ignored)[0] == 0
    note = "count the classes from 0, in the order of this list; add 1 to get your numbers\n"
    assert (note in capsys.readouterr().out) == is_told


def test_a_table_from_zero_names_black_and_white_masks(
    street: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (street / "masks").iterdir():
        Image.fromarray(255 * (np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    (street.parent / "classes.txt").write_text("0 background\n1 car\n")
    assert prepare(street, str(street), "--class-names", f"{street.parent}/classes.txt")[0] == 0
    assert "  car: 3 + 1\n" in capsys.readouterr().out


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
