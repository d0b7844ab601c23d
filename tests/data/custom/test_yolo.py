"""``prepare from-yolo`` in the layouts that datasets and labelling tools have."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from src.cli import build, main

BOX = "{label} 0.5 0.5 0.25 0.5"
POLYGON = "{label} 0.25 0.25 0.75 0.25 0.75 0.75"


def write(root, folder, count, line=BOX, labels="labels", start=0):
    """Images of 64 x 48 pixels with one object each, of two classes in turn."""
    for number in range(start, start + count):
        image = root / folder / f"{number}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(image)
        text = root / folder.replace("images", labels) / f"{number}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(line.format(label=number % 2) + "\n")


@pytest.fixture
def dataset(tmp_path):
    """The usual layout: data.yaml, images/train, images/val, labels/train, labels/val."""
    root = tmp_path / "pets"
    write(root, "images/train", 8)
    write(root, "images/val", 4, start=8)
    content = {"path": ".", "train": "images/train", "val": "images/val", "nc": 2}
    (root / "data.yaml").write_text(yaml.safe_dump(content | {"names": {0: "cat", 1: "dog"}}))
    return root


def prepare(source, out, *options):
    return main(["prepare", "from-yolo", str(source), "--out", str(out), *options])


def read(out, part):
    return json.loads((out / "annotations" / f"{part}.json").read_text())


def test_boxes_become_a_trainable_recipe_of_dino(dataset, tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare(dataset / "data.yaml", out) == 0
    text = capsys.readouterr().out
    assert "8 training and 4 validation images" in text
    assert "cat: 4 + 2" in text
    assert "the labels are boxes: the recipe trains DINO" in text
    assert read(out, "train")["annotations"][1]["bbox"] == [24.0, 12.0, 16.0, 24.0]
    config = out / "pets.yaml"
    assert build(["--config", str(config)]).datamodule.class_names == ["cat", "dog"]
    quiet = ["--trainer.fast_dev_run", "true", "--trainer.enable_progress_bar", "false"]
    small = ["--data.num_workers", "0", "--data.train_scales", "[[96, 72]]"]
    assert main(["fit", "-c", str(config), *quiet, *small, "--data.eval_scale", "[96, 72]"]) == 0


def test_polygons_become_a_recipe_of_mask_rcnn(dataset, tmp_path, capsys):
    for path in dataset.glob("labels/*/*.txt"):
        path.write_text(POLYGON.format(label=0))
    assert prepare(dataset, tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "Mask R-CNN with InternImage-NANO" in text
    assert "no training annotation, so it cannot be learned: 1 of 2 classes (dog)" in text
    annotation = read(tmp_path / "out", "val")["annotations"][0]
    assert annotation["segmentation"] == [[16.0, 12.0, 48.0, 12.0, 48.0, 36.0]]
    assert annotation["bbox"] == [16.0, 12.0, 32.0, 24.0]


def test_key_points_after_a_box_are_left_out(dataset, tmp_path):
    content = yaml.safe_load((dataset / "data.yaml").read_text()) | {"kpt_shape": [1, 2]}
    (dataset / "data.yaml").write_text(yaml.safe_dump(content))
    for path in dataset.glob("labels/*/*.txt"):
        path.write_text(BOX.format(label=0) + " 0.1 0.1")
    assert prepare(dataset, tmp_path / "out") == 0
    assert read(tmp_path / "out", "val")["annotations"][0]["bbox"] == [24.0, 12.0, 16.0, 24.0]


def test_exports_with_paths_beside_the_folder_are_read(tmp_path, capsys):
    root = tmp_path / "export"
    for part in ("train", "valid", "test"):
        write(root, f"{part}/images", 4)
    content = {"train": "../train/images", "val": "../valid/images", "test": "../test/images"}
    (root / "data.yaml").write_text(yaml.safe_dump(content | {"names": ["cat", "dog"]}))
    assert prepare(root, tmp_path / "out") == 0
    assert "4 training, 4 validation and 4 test images" in capsys.readouterr().out


def test_lists_of_images_are_read(dataset, tmp_path, capsys):
    (dataset / "train.txt").write_text("./images/train/0.jpg\n./images/train/1.jpg\n")
    content = yaml.safe_load((dataset / "data.yaml").read_text()) | {"train": "train.txt"}
    (dataset / "data.yaml").write_text(yaml.safe_dump(content))
    assert prepare(dataset, tmp_path / "out") == 0
    assert "2 training and 4 validation images" in capsys.readouterr().out


def test_absolute_and_relative_paths_can_be_mixed(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((dataset / "data.yaml").read_text())
    content["train"] = str(dataset / "images" / "train")
    (dataset / "data.yaml").write_text(yaml.safe_dump(content))
    assert prepare("pets", "out") == 0
    assert "8 training and 4 validation images" in capsys.readouterr().out


def test_a_folder_without_a_yaml_file_is_split_by_class(tmp_path, capsys):
    root = tmp_path / "plain"
    write(root, "images", 10)
    (root / "classes.txt").write_text("cat\ndog\n")
    assert prepare(root, tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "8 training and 2 validation images" in text
    assert "cat: 4 + 1" in text
    assert "dog: 4 + 1" in text


def test_labels_beside_the_images_need_no_names(tmp_path, capsys):
    write(tmp_path / "flat", "", 6)
    assert prepare(tmp_path / "flat", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "class 1: " in text
    assert "give them with --class-names" in text
    out = tmp_path / "out"
    assert prepare(tmp_path / "flat", out, "--class-names", "nams.txt") == 2
    assert "the file nams.txt does not exist" in capsys.readouterr().err


def test_images_without_a_label_file_are_reported(dataset, tmp_path, capsys):
    (dataset / "labels" / "train" / "0.txt").unlink()
    (dataset / "labels" / "train" / "1.txt").write_text("")
    assert prepare(dataset, tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "1 of 12 images has no label file" in text
    assert "2 of 8 training images are left out: without annotations" in text


def test_the_same_images_for_training_and_validation_are_divided(dataset, tmp_path, capsys):
    content = yaml.safe_load((dataset / "data.yaml").read_text()) | {"val": "images/train"}
    (dataset / "data.yaml").write_text(yaml.safe_dump(content))
    assert prepare(dataset, tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "6 training and 2 validation images" in text
    assert "train and val are the same images" in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.2 0.2", "has the class 2; expected an integer from 0 to 1"),
        ("0 32 24 10 10", "has numbers outside of 0 to 1"),
        ("0 0.5 0.5 0.2", "has 4 numbers"),
        ("cat 0.5 0.5 0.2 0.2", "is not a label: 'cat 0.5 0.5 0.2 0.2'"),
        ("0 nan 0.5 0.2 0.2", "has numbers outside of 0 to 1"),
    ],
)
def test_wrong_lines_are_named(line, message, dataset, tmp_path, capsys):
    (dataset / "labels" / "train" / "3.txt").write_text(f"0 0.5 0.5 0.1 0.1\n\n{line}\n")
    assert prepare(dataset, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "Line 3 of" in error
    assert message in error
    assert not (tmp_path / "out").exists()


def test_faults_of_all_kinds_and_splits_are_reported_together(dataset, tmp_path, capsys):
    wrong = {
        "train/0": "7 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1 0.1\n8 0.5 0.5 0.1 0.1",
        "train/1": "0 0.5 0.5",
        "train/2": "cat 0.5 0.5 0.1 0.1",
        "val/8": "0 32 24 10 10\n9 0.5 0.5 0.1 0.1",
    }
    for name, text in wrong.items():
        (dataset / "labels" / f"{name}.txt").write_text(text)
    for name in ("train/3", "train/4"):
        (dataset / "labels" / f"{name}.txt").write_bytes(b"\xff")
    (dataset / "images/train/5.jpg").write_bytes(b"no image")
    assert prepare(dataset, tmp_path / "out") == 2
    error = capsys.readouterr().err
    labels = dataset / "labels"
    for line in (
        "1 of 12 images cannot be read; replace or remove it:",
        f"3 lines with an unknown class; the first: Line 1 of {labels}/train/0.txt has the class 7",
        f"Line 1 of {labels}/train/1.txt has 3 numbers",
        f"Line 1 of {labels}/train/2.txt is not a label",
        f"Line 1 of {labels}/val/8.txt has numbers outside of 0 to 1",
        f"2 label files that are not UTF-8 text; the first: The label file {labels}/train/3.txt",
    ):
        assert error.count(line) == 1, line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": None}, "has no list `names`"),
        ({"names": ["cat", "cat"]}, "has the class name 'cat' twice"),
        ({"nc": 3}, "has nc: 3, but 2 names"),
        ({"train": "images/gone"}, "has train: images/gone, but"),
        ({"train": None}, "has no images for training"),
        ({"val": 5}, "has val: 5; expected"),
    ],
)
def test_wrong_yaml_files_are_named(change, message, dataset, tmp_path, capsys):
    content = yaml.safe_load((dataset / "data.yaml").read_text()) | change
    (dataset / "data.yaml").write_text(yaml.safe_dump(content))
    assert prepare(dataset / "data.yaml", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_all_faults_of_a_yaml_file_are_reported_together(dataset, tmp_path, capsys):
    path = dataset / "data.yaml"
    wrong = {"train": "gone", "val": 5, "names": ["cat", "cat"], "nc": 3}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | wrong))
    assert prepare(path, tmp_path / "out") == 2
    error = capsys.readouterr().err
    messages = ("train: gone, but", "val: 5; expected", "class name 'cat' twice", "nc: 3, but 2")
    assert [error.count(message) for message in messages] == [1, 1, 1, 1]
    assert error.count("error: ") == 1


def test_a_dataset_without_labels_or_that_does_not_exist_is_refused(dataset, tmp_path, capsys):
    for path in dataset.glob("labels/*/*.txt"):
        path.unlink()
    assert prepare(dataset, tmp_path / "out") == 2
    assert "None of the 12 images" in capsys.readouterr().err
    assert prepare(tmp_path / "gone", tmp_path / "out") == 2
    assert "does not exist" in capsys.readouterr().err
    (dataset / "data.yaml").write_text("- a\n")
    assert prepare(dataset / "data.yaml", tmp_path / "out") == 2
    assert "is not the yaml file of a dataset" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["images", "images/pets"])
def test_labels_beside_images_are_found_under_a_folder_called_images(folder, tmp_path):
    root = tmp_path / folder
    write(root, "photos", 6)
    (root / "classes.txt").write_text("cat\ndog\n")
    assert prepare(root, tmp_path / "out") == 0
    parts = [read(tmp_path / "out", part)["annotations"] for part in ("train", "val")]
    assert [len(annotations) for annotations in parts] == [5, 1]


def test_messages_and_the_record_name_what_was_given(dataset, tmp_path, capsys):
    assert prepare(dataset, tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "prepared.json").read_text())["source"] == str(dataset)
    one = tmp_path / "one"
    write(one, "photos", 1)
    capsys.readouterr()
    assert prepare(one, tmp_path / "other", "--class-names", "cat", "dog") == 2
    assert f"{one} has one image" in capsys.readouterr().err


def test_the_folder_of_the_validation_images_is_the_one_to_predict(dataset, tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare(dataset, out) == 0
    assert f"--data.predict_dir {dataset / 'images' / 'val'}" in capsys.readouterr().out
    assert not (out / "val").exists()
