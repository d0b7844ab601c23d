"""``prepare from-folder``, ``from-coco`` and ``from-masks`` on awkward files."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from src.cli import build, main
from src.data.custom.recipe import RECIPES, batch_size, published_weights, small_data_recipe
from src.decoding import decode
from src.models.weights.files import HUB_FILES
from tests.cli.tiny import save_image

TURNED = 6  # EXIF orientation: turn by 90 degrees clockwise to look at it
CLASSES = ("größer Hund", "cat #2: tabby", "ζέβρα")


def save(path, size=(40, 30), mode="RGB", seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def turned():
    exif = Image.Exif()
    exif[0x0112] = TURNED
    return exif


@pytest.fixture
def photos(tmp_path):
    """Ten images of every kind in class folders with awkward names."""
    root = tmp_path / "my photos"
    for number in range(10):
        save(root / CLASSES[number % 3] / f"image {number}.jpg", seed=number)
    save(root / CLASSES[0] / "grey.png", mode="L")
    save(root / CLASSES[0] / "print.jpg", mode="CMYK")
    save(root / CLASSES[1] / "phone.jpg", exif=turned())
    return root


def made(folder):
    """The recipe that ``prepare`` has written."""
    (path,) = folder.glob("*.yaml")
    return path


def recipe_of(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def run_once(config, **smaller):
    """One batch of training and validation, on smaller images than the recipe says."""
    quiet = ["--trainer.fast_dev_run", "true", "--trainer.enable_progress_bar", "false"]
    sizes = [f"--data.{name}={value}" for name, value in smaller.items()]
    return main(["fit", "--config", str(config), *quiet, "--data.num_workers", "0", *sizes])


def test_folders_are_split_checked_and_trainable(photos, tmp_path, capsys):
    out = tmp_path / "out"
    for name in ("a.heic", "b.heic", "notes"):
        (next(photos.iterdir()) / name).touch()
    assert main(["prepare", "from-folder", str(photos), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "10 training and 3 validation images" in text
    assert "all 13 images can be read (1 CMYK, 1 grey, 1 turned by EXIF)" in text
    assert "left out (2 .heic, 1 notes)" in text
    assert "InternImage-NANO, starts from scratch" in text
    config = out / "my_photos.yaml"
    assert f"python -m src fit --config {config}" in text
    assert {path.name for path in (out / "train").iterdir()} == set(CLASSES)
    everything = {p.name for p in out.glob("*/*/*") if p.suffix in (".jpg", ".png")}
    assert everything == {p.name for p in photos.glob("*/*") if p.suffix in (".jpg", ".png")}
    cli = build(["--config", str(config)])
    assert cli.datamodule.class_names == sorted(CLASSES)
    assert cli.model.num_classes == 3
    assert run_once(config, image_size=48) == 0


def test_images_of_phones_stand_upright(photos):
    path = photos / CLASSES[1] / "phone.jpg"
    assert decode(path).size == (40, 30)
    assert decode(path, upright=True).size == (30, 40)


def test_folders_that_are_split_already_stay_where_they_are(photos, tmp_path, capsys):
    root = tmp_path / "split"
    for part in ("train", "val"):
        for number in range(4):
            save(root / part / "ab"[number % 2] / f"{number}.png", seed=number)
    out = tmp_path / "out"
    assert main(["prepare", "from-folder", str(root), "--out", str(out), "--name", "x"]) == 0
    assert "4 training and 4 validation images" in capsys.readouterr().out
    assert recipe_of(out / "x.yaml")["data"]["init_args"]["root"] == str(root)
    assert not (out / "train").exists()


def test_a_folder_made_from_other_data_is_not_replaced(photos, tmp_path, capsys):
    other = tmp_path / "other" / "images"
    shutil.copytree(photos, other)
    out = ["--out", str(tmp_path / "out")]
    assert main(["prepare", "from-folder", str(photos), *out]) == 0
    before = recipe_of(tmp_path / "out" / "my_photos.yaml")
    assert main(["prepare", "from-folder", str(other), *out]) == 2
    assert f"was made from {photos}, so nothing was written" in capsys.readouterr().err
    assert recipe_of(tmp_path / "out" / "my_photos.yaml") == before
    (tmp_path / "out" / "prepared.json").write_text('{"source": ')
    assert main(["prepare", "from-folder", str(photos), *out]) == 2
    assert "prepared.json, which says what" in capsys.readouterr().err


def test_a_folder_called_images_gives_its_parent_as_name(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, tmp_path / "street" / "images")
    assert main(["prepare", "from-folder", "street/images"]) == 0
    assert (tmp_path / "data" / "own" / "street" / "street.yaml").is_file()


def test_a_second_time_replaces_what_was_made_and_nothing_else(photos, tmp_path):
    out = tmp_path / "out"
    command = ["prepare", "from-folder", str(photos), "--out", str(out)]
    assert main([*command, "--mode", "copy"]) == 0
    before = sorted(path.name for path in (out / "val").rglob("*.*"))
    assert main([*command, "--val-share", "0.5"]) == 0
    assert len([*(out / "val").rglob("*.*")]) > len(before)
    assert main(["prepare", "from-folder", str(photos), "--out", str(photos.parent)]) == 2


def test_an_edited_recipe_is_kept(photos, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["prepare", "from-folder", str(photos), "--out", str(out)]
    for _ in range(2):  # the second time with the same content
        assert main(command) == 0
    written = made(out).read_text(encoding="utf-8")
    assert list(out.glob("*.bak*")) == []
    for number, edit in enumerate(("# größer\n", "# even greater\n")):
        made(out).write_text(written + edit, encoding="utf-8")
        assert main(command) == 0
        kept = out / f"my_photos.yaml.bak{number or ''}"
        assert f"Kept:    {kept}: " in capsys.readouterr().out
        assert kept.read_text(encoding="utf-8") == written + edit
        assert made(out).read_text(encoding="utf-8") == written


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/1.png": "ok", "a/2.png": "ok"}, "has 1 class folder (a) and 0 files beside it;"),
        ({"1.png": "ok"}, "has no class folders and 1 file;"),
        ({"a/1.png": "ok", "a/2.png": "ok", "b/1.png": "ok"}, "'b'"),
        ({"a/1.png": "ok", "a/2.png": "ok", "b/1.png": "ok", "b/2.png": "bad"}, "b/2.png"),
    ],
)
def test_mistakes_in_folders_are_named(files, message, tmp_path, capsys):
    for name, state in files.items():
        save(tmp_path / "in" / name)
        if state == "bad":
            (tmp_path / "in" / name).write_bytes(b"no image")
    given = ["prepare", "from-folder", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.fixture
def annotated(tmp_path):
    """Six images with a COCO json; one is grey, one is rotated by EXIF."""
    images = tmp_path / "images"
    entries, objects = [], []
    for number in range(1, 7):
        options = {"exif": turned()} if number == 2 else {}
        save(
            images / f"bild {number}.jpg",
            (64, 48),
            "L" if number == 1 else "RGB",
            number,
            **options,
        )
        height, width = (64, 48) if number == 2 else (48, 64)
        name = f"bild {number}.jpg"
        entries.append({"id": number, "file_name": name, "height": height, "width": width})
        objects.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 7 if number % 2 else 3,
                "bbox": [4, 4, 30, 30],
                "area": 900,
                "iscrowd": 0,
                "segmentation": [[4, 4, 34, 4, 34, 34, 4, 34]],
            }
        )
    names = [{"id": 3, "name": "roter Apfel"}, {"id": 7, "name": "梨"}]
    content = {"images": entries, "annotations": objects, "categories": names}
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    return images, path


def test_coco_files_are_split_checked_and_trainable(annotated, tmp_path, capsys):
    images, path = annotated
    out = tmp_path / "out"
    given = ["prepare", "from-coco", str(path), "--images", str(images), "--out", str(out)]
    assert main(given) == 0
    text = capsys.readouterr().out
    assert "5 training and 1 validation image;" in text
    assert "note: 5 training images are few for a detector from scratch" in text
    assert "add --network t (or s, b, l, xl) to fine-tune published weights\n" in text
    assert "梨: " in text
    parts = [json.loads((out / "annotations" / f"{p}.json").read_text()) for p in ("train", "val")]
    assert sorted(i["id"] for part in parts for i in part["images"]) == [1, 2, 3, 4, 5, 6]
    assert all(
        a["image_id"] in {i["id"] for i in p["images"]} for p in parts for a in p["annotations"]
    )
    config = made(out)
    assert build(["--config", str(config)]).datamodule.class_names == ["roter Apfel", "梨"]
    assert run_once(config, train_scales=[[96, 72]], eval_scale=[96, 72]) == 0


def test_only_classes_with_objects_are_listed(annotated, tmp_path, capsys):
    images, path = annotated
    content = json.loads(path.read_text())
    content["categories"] += [{"id": 100 + n, "name": f"class {n}"} for n in range(40)]
    content["annotations"] += [
        content["annotations"][0] | {"id": 1000 + 50 * n + k, "category_id": 100 + n}
        for n in range(20)
        for k in range(n + 1)
    ]
    path.write_text(json.dumps(content))
    given = ["--images", str(images), "--out", str(tmp_path / "out")]
    assert main(["prepare", "from-coco", str(path), "--val-annotations", str(path), *given]) == 0
    text = capsys.readouterr().out
    listed = text.split("objects (training + validation):\n")[1].split("note:")[0].splitlines()
    assert [line.split(":")[0].strip() for line in listed] == [
        "roter Apfel",
        "梨",
        *(f"class {n}" for n in range(13)),
        "and 7 more classes",
    ]
    (note,) = re.findall("note: no training annotation, .*", text)
    assert "20 of 42 classes (class 20, class 21, " in note
    assert note.endswith("class 29 and 10 more)")


def test_a_folder_name_in_any_alphabet_is_told_and_needs_no_quotes(
    photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = photos.rename(tmp_path / "Tüten fotos")
    assert main(["prepare", "from-folder", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "note: the name is Tüten_fotos, from the folder 'Tüten fotos'; --name gives" in printed
    assert "Train:   python -m src fit --config data/own/Tüten_fotos/Tüten_fotos.yaml\n" in printed
    assert "predict --name Tüten_fotos --data.predict_dir data/own/Tüten_fotos/val\n" in printed
    assert main(["prepare", "from-folder", str(folder), "--name", "Tüten_fotos"]) == 0
    assert "note: the name" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["from-folder", "from-coco", "from-yolo", "from-masks"])
def test_no_note_precedes_an_error(command, tmp_path, capsys):
    folder = tmp_path / "new photos"
    save_image(folder / "a.jpg")
    assert main(["prepare", command, str(folder)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert "note:" not in printed.out


def test_a_taken_name_leads_to_a_free_one(annotated, tmp_path, capsys, monkeypatch):
    images, path = annotated
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "from-coco", str(path), "--images", str(images)]) == 0
    name = next((tmp_path / "data" / "own").iterdir()).name
    other = shutil.copy(path, tmp_path / "grüne Äpfel.json")
    given = ["prepare", "from-coco", str(other), "--images", str(images)]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert f"data/own/{name} was made from {path}, so nothing was written. The name is that of" in (
        error
    )
    assert f"such as --name grüne_Äpfel, or delete data/own/{name}." in error
    assert main([*given, "--name", "grüne_Äpfel"]) == 0
    assert main([*given, "--name", name]) == 2
    assert f"Give another name, such as --name {name}_2, or" in capsys.readouterr().err
    assert main([*given, "--out", f"data/own/{name}"]) == 2
    error = capsys.readouterr().err
    assert f"Give another folder, such as --out data/own/{name}_2, or" in error


def test_a_refused_annotation_file_is_not_reported_as_prepared(annotated, tmp_path, capsys):
    images, path = annotated
    given = ["--images", str(images), "--out", str(tmp_path / "out")]
    assert main(["prepare", "from-coco", str(path), *given]) == 0
    other = shutil.copy(path, tmp_path / "other.json")
    capsys.readouterr()
    assert main(["prepare", "from-coco", str(other), *given]) == 2
    output = capsys.readouterr()
    assert f"was made from {path}, so nothing was written" in output.err
    assert not output.out


def test_mistakes_in_coco_files_are_named(annotated, tmp_path, capsys):
    images, path = annotated
    given = ["prepare", "from-coco", str(path), "--out", str(tmp_path / "out"), "--images"]
    assert main([*given, str(tmp_path)]) == 2
    assert "6 of 6 images" in capsys.readouterr().err
    save(images / "bild 3.jpg", (20, 20))
    assert main([*given, str(images)]) == 2
    assert "and the image is 20x20." in capsys.readouterr().err


def without_masks(path):
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    path.write_text(json.dumps(content))


def test_boxes_without_masks_become_a_trainable_recipe_of_dino(annotated, tmp_path, capsys):
    images, path = annotated
    without_masks(path)
    out = tmp_path / "out"
    given = ["prepare", "from-coco", str(path), "--images", str(images), "--out", str(out)]
    assert main(given) == 0
    text = capsys.readouterr().out
    assert "boxes but no masks, so the recipe trains DINO" in text
    assert "DINO with InternImage-NANO, starts from scratch" in text
    assert "roter Apfel: " in text
    config = made(out)
    settings = recipe_of(config)
    assert settings["model"]["init_args"]["network"]["class_path"] == "DINO"
    assert settings["data"]["init_args"]["masks"] is False
    assert run_once(config, train_scales=[[96, 72]], eval_scale=[96, 72]) == 0


def test_dino_is_fine_tuned_in_its_published_sizes_only(annotated, tmp_path, capsys):
    images, path = annotated
    without_masks(path)
    out = tmp_path / "out"
    given = ["prepare", "from-coco", str(path), "--images", str(images), "--out", str(out)]
    assert main([*given, "--network", "b"]) == 2
    assert "there is no DINO of this size" in capsys.readouterr().err
    assert not out.exists()
    assert main([*given, "--network", "t"]) == 0
    weights = recipe_of(made(out))["model"]["init_args"]["weights"]
    assert weights == "dino_4scale_internimage_t_1x_coco"
    printed = capsys.readouterr().out
    assert "starts from scratch" not in printed
    once = rf"`fit` downloads {weights}\.pth once \(about \d+ MB\) from Hugging Face;\n"
    assert re.search(rf"{once} +without a connection, add --weights FILE", printed)
    assert main([*given, "--network", "t", "--weights", "own.pth"]) == 0
    assert "without a connection" not in capsys.readouterr().out


def test_a_file_without_usable_boxes_is_refused(annotated, tmp_path, capsys):
    images, path = annotated
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation |= {"segmentation": [], "iscrowd": 1}
    path.write_text(json.dumps(content))
    out = str(tmp_path / "out")
    assert main(["prepare", "from-coco", str(path), "--images", str(images), "--out", out]) == 2
    assert "has no annotation with a box, so nothing can be learned" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["symlink", "copy"])
def test_the_validation_images_of_a_split_are_in_a_folder_to_predict(
    annotated, tmp_path, mode, capsys
):
    images, path = annotated
    out = tmp_path / "out"
    given = ["--images", str(images), "--out", str(out), "--mode", mode]
    for _ in range(2):  # the second call makes the folder again
        assert main(["prepare", "from-coco", str(path), *given]) == 0
        val = json.loads((out / "annotations" / "val.json").read_text())
        found = {p.name: p.is_symlink() for p in (out / "val").iterdir()}
        assert found == {image["file_name"]: mode == "symlink" for image in val["images"]}
        assert f"--data.predict_dir {out / 'val'}" in capsys.readouterr().out


def test_every_class_has_its_share_of_the_validation_images(annotated, tmp_path):
    images, path = annotated
    content = json.loads(path.read_text())
    first = content["images"][2]
    content["images"] = [first | {"id": number} for number in range(40)]
    content["annotations"] = [
        # Ten images of the second class, at the end, and all with the first class.
        content["annotations"][0] | {"id": 2 * n + k, "image_id": n, "category_id": category}
        for n in range(40)
        for k, category in enumerate([3, 7] if n >= 30 else [3])
    ]
    path.write_text(json.dumps(content))
    for seed in range(5):
        out = tmp_path / f"out {seed}"
        given = ["--images", str(images), "--out", str(out), "--seed", str(seed)]
        assert main(["prepare", "from-coco", str(path), *given]) == 0
        val = json.loads((out / "annotations" / "val.json").read_text())
        assert len(val["images"]) == 8
        assert sum(a["category_id"] == 7 for a in val["annotations"]) == 2


def write_masks(root, mode):
    """Four images and their label maps, the first image lying on its side."""
    for number in range(4):
        options = {"exif": turned()} if number == 0 else {}
        save(root / "images" / f"{number}.jpg", (64, 48), seed=number, **options)
        shape = (64, 48) if number == 0 else (48, 64)
        mask = np.zeros(shape, np.uint8)
        mask[10:30, 10:30] = 1
        if mode == "binary":
            mask *= 255
        elif mode == "colour":
            mask = np.array([(0, 0, 0), (255, 128, 0)], np.uint8)[mask]
        (root / "masks").mkdir(exist_ok=True)
        image = Image.fromarray(mask)
        if mode == "palette":
            image.putpalette([0, 0, 0, 255, 128, 0])
        image.save(root / "masks" / f"{number}.png")
    return ["--images", str(root / "images"), "--masks", str(root / "masks")]


@pytest.mark.parametrize("mode", ["numbers", "binary", "colour", "palette"])
def test_label_maps_become_class_numbers(mode, tmp_path, capsys):
    given = ["prepare", "from-masks", *write_masks(tmp_path, mode), "--out", str(tmp_path / "out")]
    names = ["der Grund", "été"]
    if mode in ("colour", "palette"):
        table = tmp_path / "colours.txt"
        table.write_text("#000000 der Grund\n\n#FF8000 été\n", encoding="utf-8")
        given += ["--colours", str(table)]
    else:
        given += ["--class-names", *names]
    assert main(given) == 0
    assert "été: 3 + 1" in capsys.readouterr().out
    maps = [np.asarray(Image.open(p)) for p in (tmp_path / "out").glob("annotations/*/*.png")]
    assert len(maps) == 4
    assert all(set(np.unique(m)) == {0, 1} for m in maps)
    settings = recipe_of(made(tmp_path / "out"))["data"]["init_args"]
    assert settings["class_names"] == names
    assert settings["upright"] is True
    if mode in ("colour", "palette"):
        assert settings["palette"] == [[0, 0, 0], [255, 128, 0]]


def maps_of(out):
    return [np.asarray(Image.open(path)) for path in out.glob("annotations/*/*.png")]


@pytest.mark.parametrize(
    "options",
    [
        ["--class-names", "tree", "--ignore", "0"],
        ["--class-names", "unlabelled", "tree"],
        ["--class-names", "Unlabeled", "tree", "--class-values", "0", "1"],
        ["--class-names", "tree", "--class-values", "1", "--ignore", "0"],
    ],
)
def test_numbers_of_unlabelled_pixels_are_ignored(options, tmp_path, capsys):
    out = tmp_path / "out"
    given = ["prepare", "from-masks", *write_masks(tmp_path, "numbers"), "--out", str(out)]
    assert main([*given, *options]) == 0
    text = capsys.readouterr().out
    assert "unlabelled, besides 255: 0" in text
    assert "tree: 3 + 1" in text
    assert all(set(np.unique(labels)) == {0, 255} for labels in maps_of(out))
    assert recipe_of(made(out))["data"]["init_args"]["class_names"] == ["tree"]


def test_mistakes_with_unlabelled_numbers_are_named(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    given = ["prepare", "from-masks", *write_masks(tmp_path, "numbers"), *out]
    assert main([*given, "--ignore", "0", "1"]) == 2
    assert "The label maps hold no class: 0, 1, 255 are unlabelled" in capsys.readouterr().err
    assert main([*given, "--class-values", "0", "1", "--ignore", "1"]) == 2
    assert "1 is given in both --class-values and --ignore" in capsys.readouterr().err
    assert main([*given, "--ignore", "-1"]) == 2
    assert "--ignore accepts different numbers from 0 to 65535, got -1" in capsys.readouterr().err
    assert main([*given, "--ignore", "0", "--colours", "table.txt"]) == 2
    assert main([*given, "--ignore", "0", "--snap"]) == 2
    assert "give them with --class-values" in capsys.readouterr().err
    assert main([*given, "--ignore", "0", "--class-names", "unlabelled", "tree"]) == 2
    assert "remove 'unlabelled' from --class-names" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_name_too_few_may_mean_that_zero_is_unlabelled(tmp_path, capsys):
    given = [
        "prepare",
        "from-masks",
        *write_masks(tmp_path, "numbers"),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*given, "--class-names", "tree"]) == 2
    assert "If 0 means unlabelled, add --ignore 0." in capsys.readouterr().err


def test_names_count_from_the_first_number_that_is_a_class(tmp_path, capsys):
    images, masks = tmp_path / "images", tmp_path / "masks"
    for folder in (images, masks):
        folder.mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32)).save(images / f"{number}.png")
        values = np.repeat(np.arange(4, dtype=np.uint8), 8)[None].repeat(32, 0)
        Image.fromarray(values).save(masks / f"{number}.png")
    given = ["prepare", "from-masks", "--images", str(images), "--masks", str(masks)]
    given += ["--out", str(tmp_path / "out"), "--ignore", "0", "--class-names", "road", "car"]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert "are the numbers 1, 2, 3, but --class-names gives 2 names (road, car)" in error
    assert "--ignore 0" not in error
    assert "Give 3, the first one for number 1." in error


def test_label_maps_are_split_so_that_every_class_is_validated(tmp_path, capsys):
    write_masks(tmp_path, "numbers")
    for number in range(20):
        save(tmp_path / "images" / f"{number}.jpg", (64, 48), seed=number)
        labels = np.zeros((48, 64), np.uint8)
        labels[:20] = number >= 15
        Image.fromarray(labels).save(tmp_path / "masks" / f"{number}.png")
    folders = ["--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks")]
    for seed in range(3):
        out = ["--out", str(tmp_path / "out"), "--seed", str(seed)]
        assert main(["prepare", "from-masks", *folders, *out]) == 0
        assert "class 1: 4 + 1" in capsys.readouterr().out


def test_prepared_label_maps_of_rotated_images_can_be_trained_on(tmp_path):
    given = ["prepare", "from-masks", *write_masks(tmp_path, "numbers")]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    config = made(tmp_path / "out")
    assert run_once(config, image_scale=[96, 64], crop_size=[64, 64]) == 0


def test_mistakes_in_label_maps_are_named(tmp_path, capsys):
    folders = write_masks(tmp_path, "colour")
    given = ["prepare", "from-masks", *folders, "--out", str(tmp_path / "out")]
    assert main(given) == 2
    assert "#ff8000 name" in capsys.readouterr().err
    table = tmp_path / "colours.txt"
    table.write_text("#000000 ground\n")
    assert main([*given, "--colours", str(table)]) == 2
    assert "has the colour #ff8000 in 400 pixels" in capsys.readouterr().err
    shutil.copy(tmp_path / "images" / "3.jpg", tmp_path / "images" / "3.jpeg")
    assert main(given) == 2
    assert "share the label map" in capsys.readouterr().err
    (tmp_path / "images" / "3.jpeg").unlink()
    (tmp_path / "masks" / "2.png").unlink()
    assert main(given) == 2
    assert "1 of 4 images in" in capsys.readouterr().err
    Image.new("L", (5, 5)).save(tmp_path / "masks" / "2.png")
    assert main([*given, "--colours", str(table)]) == 2
    assert "masks/2.png: 5x5, and its image" in capsys.readouterr().err
    for number in (2, 3):
        (tmp_path / "images" / f"{number}.jpg").unlink()
    assert main(given) == 2
    assert "at least three are needed" in capsys.readouterr().err


@pytest.mark.parametrize("task", RECIPES)
def test_a_recipe_exists_for_every_size_of_network(task):
    for size, base in RECIPES[task].items():
        weights = None
        if size != "nano":
            weights, megabytes = published_weights(task, base)
            assert weights in HUB_FILES
            assert 100 < megabytes < 2000
        recipe = small_data_recipe(task, base, weights, {"root": "x"}, images=24)
        model, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
        assert data["root"] == "x"
        assert model.get("weights") == weights
        assert model["reference_batch_size"] == data["batch_size"] <= 24
        assert 10 < recipe["trainer"]["max_epochs"] <= 200
        assert model.get("mixup_alpha", 0.0) == 0.0
        assert "mixup_prob" not in model  # it would have no effect


@pytest.mark.parametrize(("task", "usual"), [("classification", 16), ("segmentation", 8)])
def test_an_epoch_has_nearly_all_images(task, usual):
    for images in range(1, 200):
        size = batch_size(task, images)
        assert images % size <= images / 10
        larger = range(size + 1, min(usual, images) + 1)
        assert all(images % other > images / 10 for other in larger)
    assert [batch_size("classification", images) for images in (5, 24, 47, 1000)] == [5, 12, 15, 16]


def test_detectors_fill_up_their_batches():
    assert [batch_size("boxes", images) for images in (1, 3, 5, 7, 47)] == [1, 3, 4, 4, 4]


@pytest.mark.parametrize(
    ("images", "line"),
    [(20, "batches of 16\n"), (30, "batches of 12; 16 would leave out 8 of 24 images\n")],
)
def test_prepare_tells_a_smaller_batch(images, line, tmp_path, capsys):
    for number in range(images):
        save(tmp_path / f"in/{'ab'[number % 2]}/{number}.png", seed=number)
    given = ["from-folder", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert main(["prepare", *given]) == 0
    assert f" epochs, {line}" in capsys.readouterr().out
