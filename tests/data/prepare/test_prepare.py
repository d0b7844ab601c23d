import errno
import hashlib

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from src.cli.commands.prepare import main as prepare
from src.data.classes.class_names import imagenet_synsets
from src.data.prepare import imagenet_val
from src.data.toy.scenes import SHAPES
from src.errors import UserError

SMALL = ["--train", "2", "--val", "1", "--predict", "2", "--size", "32"]


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def toy(root, *options):
    return prepare(["toy", "--root", str(root), *SMALL, *options])


def test_toy_writes_the_imagenet_layout(tmp_path, capsys):
    assert toy(tmp_path) == 0
    assert "wrote 10 classes with 2 train and 1 val images" in capsys.readouterr().out
    folder = tmp_path / "imagenet"
    assert sorted(path.name for path in (folder / "train").iterdir()) == sorted(SHAPES)
    assert len(list(folder.glob("train/*/*.jpg"))) == 20
    assert len(list(folder.glob("val/*/*.jpg"))) == 10
    assert len(list(folder.glob("predict/*.jpg"))) == 2
    with Image.open(next(folder.glob("val/star/*.jpg"))) as image:
        assert image.size == (32, 32)


def test_toy_is_the_same_everywhere_and_no_image_occurs_twice(tmp_path):
    toy(tmp_path / "a"), toy(tmp_path / "b"), toy(tmp_path / "c", "--seed", "1")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    first, other = (
        {name: value for name, value in contents(tmp_path / root).items() if name.endswith(".jpg")}
        for root in "ac"
    )
    assert len(set(first.values())) == len(first)
    assert not set(first.values()) & set(other.values())


def test_more_images_keep_the_first_ones(tmp_path):
    toy(tmp_path / "a"), toy(tmp_path / "b", "--train", "3")
    few, many = contents(tmp_path / "a"), contents(tmp_path / "b")
    images = [name for name in few if name.endswith(".jpg")]
    assert all(few[name] == many[name] for name in images)


def test_drawing_in_processes_gives_the_same_images(tmp_path, monkeypatch):
    toy(tmp_path / "serial")
    monkeypatch.setattr("src.data.toy.imagenet._MIN_IMAGES_FOR_POOL", 1)
    toy(tmp_path / "parallel")
    assert contents(tmp_path / "serial") == contents(tmp_path / "parallel")


def test_existing_toy_data_are_kept(tmp_path, capsys):
    toy(tmp_path)
    before = (tmp_path / "imagenet" / "toy.json").stat().st_mtime_ns
    assert toy(tmp_path) == 0
    assert "already exists" in capsys.readouterr().out
    assert (tmp_path / "imagenet" / "toy.json").stat().st_mtime_ns == before


def test_an_interrupted_run_is_repeated(tmp_path):
    (tmp_path / "imagenet" / ".0123456789ab.part" / "train").mkdir(parents=True)
    toy(tmp_path)
    assert (tmp_path / "imagenet" / "toy.json").exists()
    assert len(list(tmp_path.glob("imagenet/train/*/*.jpg"))) == 20


def test_other_settings_are_refused_unless_forced(tmp_path):
    toy(tmp_path)
    with pytest.raises(UserError, match=r"other settings.*--force"):
        toy(tmp_path, "--seed", "1")
    toy(tmp_path, "--seed", "1", "--force")
    assert '"seed": 1' in (tmp_path / "imagenet" / "toy.json").read_text()
    (tmp_path / "imagenet" / "toy.json").write_text("{")
    with pytest.raises(UserError, match=r"other settings.*--force"):
        toy(tmp_path, "--seed", "1")


def test_folders_with_other_content_are_left_alone(tmp_path):
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "holiday.jpg").touch()
    with pytest.raises(UserError, match=r"is not toy data"):
        toy(tmp_path, "--force")
    assert (tmp_path / "imagenet" / "holiday.jpg").exists()


@pytest.mark.parametrize(("option", "value"), [("--size", "8"), ("--train", "0"), ("--seed", "-1")])
def test_values_out_of_range_are_refused(tmp_path, option, value):
    with pytest.raises(UserError, match=rf"{option[2:]} accepts .* got {value}"):
        toy(tmp_path, option, value)


# --- imagenet-val -------------------------------------------------------------------------------

LABELS = [65, 970, 0]


@pytest.fixture
def flat(tmp_path):
    """Three validation images in one folder, as the archive unpacks."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for number in range(1, 4):
        Image.new("RGB", (8, 8)).save(folder / f"ILSVRC2012_val_{number:08d}.JPEG")
    return folder


def arrange(flat, labels, *options):
    root = flat.parent / "imagenet"
    prepare(
        [
            "imagenet-val",
            "--images",
            str(flat),
            "--labels",
            str(labels),
            "--root",
            str(root),
            *options,
        ]
    )
    return sorted(str(path.relative_to(root / "val")) for path in root.glob("val/*/*"))


def expected():
    names = imagenet_synsets()
    return sorted(f"{names[k]}/ILSVRC2012_val_{i:08d}.JPEG" for i, k in enumerate(LABELS, 1))


def write_labels(folder, style):
    names, path = imagenet_synsets(), folder / "labels.txt"
    if style == "index":
        lines = [f"ILSVRC2012_val_{i:08d}.JPEG {k}" for i, k in enumerate(LABELS, 1)]
    elif style == "synset":
        lines = [f"ILSVRC2012_val_{i:08d}.JPEG {names[k]}" for i, k in enumerate(LABELS, 1)]
    elif style == "kaggle":
        rows = [f"ILSVRC2012_val_{i:08d},{names[k]} 1 2 3 4 " for i, k in enumerate(LABELS, 1)]
        lines = ["ImageId,PredictionString", *rows]
    else:  # the devkit counts from 1 in an order of its own; here the reverse of ImageNet's
        kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
        rows = [(i, name, 0) for i, name in enumerate(reversed(names), 1)]
        savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
        lines = [str(1000 - k) for k in LABELS]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("style", ["index", "synset", "kaggle", "devkit"])
def test_every_public_label_list_gives_the_same_folders(flat, tmp_path, style):
    assert arrange(flat, write_labels(tmp_path, style)) == expected()


def test_the_devkit_names_no_other_folders(flat, tmp_path):
    labels = write_labels(tmp_path, "devkit")
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O")]
    rows = np.array([(i, f"../../{i}") for i in range(1, 1001)], dtype=kinds)
    savemat(tmp_path / "meta.mat", {"synsets": rows.reshape(-1, 1)})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"meta.mat names the class '../../1'; expected synsets"):
        arrange(flat, labels)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("mode", ["copy", "move"])
def test_a_full_disk_leaves_no_half_of_an_image(flat, tmp_path, mode, largest_file, monkeypatch):
    def other_disk(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(imagenet_val.Path, "rename", other_disk)
    labels = write_labels(tmp_path, "index")
    with (
        largest_file(100),
        pytest.raises(UserError, match=r"could not be written \(File too large"),
    ):
        arrange(flat, labels, "--mode", mode)
    assert not [path for path in (tmp_path / "imagenet").rglob("*") if path.is_file()]
    assert arrange(flat, labels, "--mode", mode) == expected()
    assert len(list(flat.iterdir())) == (0 if mode == "move" else 3)


@pytest.mark.parametrize("mode", ["symlink", "hardlink", "copy", "move"])
def test_images_arrive_in_every_mode_and_again_is_harmless(flat, tmp_path, capsys, mode):
    labels = write_labels(tmp_path, "index")
    assert arrange(flat, labels, "--mode", mode) == expected()
    assert "3 images placed" in capsys.readouterr().out
    assert arrange(flat, labels, "--mode", mode) == expected()
    assert "0 images placed" in capsys.readouterr().out
    for path in (tmp_path / "imagenet").glob("val/*/*"):
        Image.open(path).load()
        assert path.is_symlink() == (mode == "symlink")
    assert len(list(flat.iterdir())) == (0 if mode == "move" else 3)


def test_bad_label_lists_are_refused(flat, tmp_path):
    path = tmp_path / "labels.txt"
    for text, sentence in [
        ("", "is empty"),
        ("ILSVRC2012_val_00000001.JPEG 1000\n", "Line 1 .*is not a label.*0 to 999"),
        ("ILSVRC2012_val_00000001.JPEG cat\n", "Line 1 .*is not a label"),
        ("65\n970\n", "meta.mat does not exist"),
        ("ILSVRC2012_val_00000001.JPEG 65\n", "00000002.JPEG has no label"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=sentence):
            arrange(flat, path)
    with pytest.raises(UserError, match=r"absent.txt does not exist"):
        arrange(flat, tmp_path / "absent.txt")
    assert not (tmp_path / "imagenet").exists()


def test_folders_without_the_images_are_refused(flat, tmp_path):
    labels = write_labels(tmp_path, "index")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"contains no ILSVRC2012_val"):
        arrange(tmp_path / "other", labels)
    with pytest.raises(UserError, match=r"absent does not exist"):
        arrange(tmp_path / "absent", labels)
