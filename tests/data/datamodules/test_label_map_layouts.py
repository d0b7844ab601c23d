"""Cityscapes, Mapillary, Pascal Context and NYU Depth v2: layouts, numbers, names, runs."""

import json
import shutil
import time

import numpy as np
import pytest
import yaml
from PIL import Image

from src import data, files
from src.cli import main
from src.cli.commands.prepare import main as prepare
from src.cli.commands.verify import main as verify
from src.data.classes.cityscapes import CITYSCAPES_NAMES, MAPILLARY_TO_CITYSCAPES
from src.data.prepare import cityscapes
from src.errors import UserError

LAYOUTS = {
    "cityscapes": ("CityscapesDataModule", 19, "road"),
    "mapillary": ("MapillaryDataModule", 19, "road"),
    "pascal_context": ("PascalContextDataModule", 59, "aeroplane"),
    "nyu_depth_v2": ("NYUDepthV2DataModule", 40, "wall"),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
SMALL = {"image_scale": (128, 32), "crop_size": (32, 32), "num_workers": 0}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    size = ["--train", "1", "--val", "1", "--predict", "1", "--size", "32"]
    prepare(["toy", "--root", str(root), *size, "--layouts", *LAYOUTS])
    return root


def module_of(layout, toy, **options):
    if layout == "mapillary":
        options |= {"cityscapes_root": str(toy / "cityscapes")}
    return getattr(data, LAYOUTS[layout][0])(str(toy / layout), **SMALL | options)


def labels_of(module, split):
    module.setup("fit")
    dataset = module._datasets[split]
    return [dataset.read_label(index) for index in range(len(dataset))]


@every_layout
def test_labels_are_classes(layout, toy):
    module = module_of(layout, toy)
    _, count, first = LAYOUTS[layout]
    assert len(set(module.class_names)) == len(module.palette) == count
    assert module.class_names[0] == first
    assert module.class_names == type(module).official_class_names()
    for split, number in (("train", 6 if layout == "mapillary" else 4), ("val", 2)):
        found = labels_of(module, split)
        assert len(found) == number
        values = set(np.unique(np.stack(found)).tolist())
        assert 0 in values
        assert {0} < values <= set(range(11))


@pytest.mark.filterwarnings("ignore:.*never occurs.*")
@every_layout
def test_scales_of_training_and_evaluation_differ(layout, toy):
    module = module_of(layout, toy, eval_scale=(96, 24))
    module.setup("validate")
    batch = next(iter(module.val_dataloader()))
    assert max(batch["views"][0][0].shape[-2:]) == 32  # 24 rounded up to a multiple of 32
    assert batch["label"][0].shape == (32, 32)


@pytest.mark.parametrize("coarse", ["refined", "original"])
def test_coarse_labels_are_added(coarse, toy):
    module = module_of("cityscapes", toy, coarse=coarse)
    if coarse == "original":
        with pytest.raises(UserError, match="gtCoarse/train_extra does not exist"):
            module.labelled_files("train")
        return
    files = [label for _, label in module.labelled_files("train")]
    assert sum("refinement_final" in label for label in files) == 2
    assert len(files) == 6
    assert len(module.labelled_files("val")) == 2


def test_mapillary_numbers():
    """The official label transform of the numbers 0 to 65."""
    ignored, of_class = 255, dict(enumerate(CITYSCAPES_NAMES))
    table = [MAPILLARY_TO_CITYSCAPES[value] for value in range(66)]
    expected = {
        **{13: "road", 24: "road", 41: "road", 2: "sidewalk", 15: "sidewalk", 17: "building"},
        **{6: "wall", 3: "fence", 45: "pole", 47: "pole", 48: "traffic light", 50: "traffic sign"},
        **{30: "vegetation", 29: "terrain", 27: "sky", 19: "person", 20: "rider", 21: "rider"},
        **{22: "rider", 55: "car", 61: "truck", 54: "bus", 58: "train", 57: "motorcycle"},
        52: "bicycle",
    }
    assert {v: of_class[c] for v, c in enumerate(table) if c != ignored} == expected


def test_high_mapillary_numbers_are_refused_unless_asked_for(toy, tmp_path):
    for name in ("training", "validation"):
        for folder in ("images", "labels"):
            (tmp_path / name / folder).mkdir(parents=True)
        Image.new("RGB", (3, 1)).save(tmp_path / name / "images" / "a.jpg")
        values = np.array([[13, 70, 255]], np.uint8)
        Image.fromarray(values).save(tmp_path / name / "labels" / "a.png")
    options = {"cityscapes_root": str(toy / "cityscapes"), **SMALL}
    with pytest.raises(UserError, match="has the value 70"):
        labels_of(data.MapillaryDataModule(str(tmp_path), **options), "train")
    module = data.MapillaryDataModule(str(tmp_path), high_values_are_road=True, **options)
    assert labels_of(module, "train")[0].tolist() == [[0, 0, 0]]


def test_instances_give_weights(toy, tmp_path):
    shutil.copytree(toy / "cityscapes", tmp_path / "set")
    module = data.CityscapesDataModule(str(tmp_path / "set"), instances=True, **SMALL)
    module.setup("validate")
    with pytest.raises(UserError, match=r"_gtFine_instanceIds\.png does not exist"):
        next(iter(module.val_dataloader()))
    values = np.full((32, 32), 7, np.uint16)
    values[:2, :4] = 26000  # a car of eight pixels
    for _, label in module.labelled_files("val"):
        Image.fromarray(values).save(label.replace("labelTrainIds", "instanceIds"))
    weight = next(iter(module.val_dataloader()))["weight"][0]
    assert weight.shape == (32, 32)
    assert weight[:2, :4].tolist() == [[pytest.approx(12794.0202738185 / 8)] * 4] * 2
    assert weight.sum() == pytest.approx(12794.0202738185, rel=1e-5)


def test_instances_are_not_read_from_label_maps_of_another_name(toy, tmp_path):
    shutil.copytree(toy / "cityscapes", tmp_path / "set")
    for path in (tmp_path / "set").rglob("*_labelTrainIds.png"):
        path.rename(path.with_name(path.name.replace("labelTrainIds", "classes")))
    suffix = "_gtFine_classes.png"
    root = str(tmp_path / "set")
    module = data.CityscapesDataModule(root, instances=True, label_suffix=suffix, **SMALL)
    module.setup("validate")
    with pytest.raises(UserError, match=r"_instanceIds\.png does not exist"):
        next(iter(module.val_dataloader()))


@every_layout
def test_verify(layout, toy, capsys):
    command = [layout.replace("_", "-"), "--root", str(toy / layout)]
    if layout == "mapillary":
        command += ["--cityscapes-root", str(toy / "cityscapes")]
    assert verify(command) == 0
    assert "val: 2 pairs" in capsys.readouterr().out
    assert verify([*command, "--root", str(toy / "absent"), "--splits", "train"]) == 1
    assert "problem: The " in capsys.readouterr().out


def write_list(root, text):
    for folder in ("JPEGImages", "SegmentationClassContext", "ImageSets/SegmentationContext"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(root / "JPEGImages" / "2008_000002.jpg")
    (root / "ImageSets/SegmentationContext/val.txt").write_text(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("2008_000002", "have no label map"),
        ("2008_000002\n2008_000003\n", "1 of 2 images of the list .* do not exist"),
        ("../../secret", "expected names of files in"),
    ],
)
def test_invalid_lists(text, message, tmp_path):
    write_list(tmp_path, text)
    with pytest.raises(UserError, match=message):
        data.PascalContextDataModule(str(tmp_path)).labelled_files("val")


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(UserError, match=r"test\.txt cannot be read"):
        data.NYUDepthV2DataModule(str(tmp_path)).labelled_files("val")


POLYGONS = {
    "imgWidth": 8,
    "imgHeight": 4,
    "objects": [
        {"label": "road", "polygon": [[0, 0], [7, 0], [7, 3], [0, 3]]},
        {"label": "cargroup", "polygon": [[4, 0], [7, 0], [7, 3], [4, 3]]},
        {"label": "license plate", "polygon": [[5, 1], [6, 1], [6, 2], [5, 2]]},
        {"label": "static", "polygon": [[0, 3], [1, 3], [1, 3]]},
        {"label": "sky", "polygon": [[0, 0], [7, 0], [7, 3], [0, 3]], "deleted": 1},
    ],
}


def write_polygons(root, content):
    for folder in ("leftImg8bit", "gtFine"):
        (root / folder / "train" / "ulm").mkdir(parents=True)
    Image.new("RGB", (8, 4)).save(root / "leftImg8bit/train/ulm/ulm_0_leftImg8bit.png")
    (root / "gtFine/train/ulm/ulm_0_gtFine_polygons.json").write_text(content)


def test_label_maps_are_made_from_polygons(tmp_path, capsys):
    write_polygons(tmp_path, json.dumps(POLYGONS))
    module = data.CityscapesDataModule(str(tmp_path), **SMALL)
    with pytest.raises(UserError, match="prepare cityscapes --root"):
        module.labelled_files("train")
    assert prepare(["cityscapes", "--root", str(tmp_path)]) == 0
    assert "wrote 1 label map, 0 already exist" in capsys.readouterr().out
    ((_, label),) = module.labelled_files("train")
    road, car, unlabelled = 0, 13, 255
    rows = [[road] * 4 + [car] * 4] * 3 + [[unlabelled] * 2 + [road] * 2 + [car] * 4]
    assert np.array(Image.open(label)).tolist() == rows
    assert prepare(["cityscapes", "--root", str(tmp_path)]) == 0
    assert "wrote 0 label maps, 1 already exist" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a file of Cityscapes polygons"),
        ('{"imgWidth": 8, "imgHeight": 4, "objects": [{}]}', "not a file of Cityscapes polygons"),
        ('{"imgWidth": 900000, "imgHeight": 900000, "objects": []}', "900000x900000 pixels"),
        (
            '{"imgWidth": 8, "imgHeight": 4, "objects": [{"label": "cow", "polygon": []}]}',
            "label 'cow', which is unknown",
        ),
    ],
)
def test_damaged_polygons(content, message, tmp_path):
    write_polygons(tmp_path, content)
    with pytest.raises(UserError, match=message):
        prepare(["cityscapes", "--root", str(tmp_path)])


def test_label_maps_do_not_wait_in_memory_to_be_written(tmp_path, monkeypatch):
    (tmp_path / "gtFine/train/ulm").mkdir(parents=True)
    for number in range(20):
        path = tmp_path / f"gtFine/train/ulm/ulm_{number}_gtFine_polygons.json"
        path.write_text(json.dumps(POLYGONS))
    waiting, draw, write = [0, 0], cityscapes.draw_label_map, files.write_image

    def counted_draw(path):
        waiting[0] += 1
        waiting[1] = max(waiting)
        return draw(path)

    def slow_write(path, image):
        time.sleep(0.02)
        write(path, image)
        waiting[0] -= 1

    monkeypatch.setattr(cityscapes, "draw_label_map", counted_draw)
    monkeypatch.setattr(cityscapes.files, "write_image", slow_write)
    assert prepare(["cityscapes", "--root", str(tmp_path), "--workers", "2"]) == 0
    assert waiting[1] <= 2


def test_missing_polygons(tmp_path):
    with pytest.raises(UserError, match="There are no files"):
        prepare(["cityscapes", "--root", str(tmp_path)])


def test_numbers_can_be_merged_and_ignored(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (4, 1)).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.array([[7, 8, 9, 255]], np.uint8)).save(tmp_path / "labels" / "a.png")
    options = {"train_images": "images", "train_labels": "labels", "reduce_zero_label": False}
    options |= {"val_images": "images", "val_labels": "labels", "class_names": ["road"], **SMALL}
    values = {7: 0, 8: 0, 9: 255}
    module = data.ADE20KDataModule(str(tmp_path), class_values=values, **options)
    assert labels_of(module, "train")[0].tolist() == [[0, 0, 255, 255]]
    with pytest.raises(UserError, match="classes from 0 to 0"):
        assert data.ADE20KDataModule(class_values={7: 1}, **options).class_names


@every_layout
def test_fit_and_validate(layout, toy, tmp_path):
    backbone = {"channels": 8, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]}
    network = {
        "backbone": {"class_path": "InternImageBackbone", "init_args": backbone},
        "decode_head": {"class_path": "SegFormerHead", "init_args": {"channels": 8}},
        "auxiliary_head": None,
        "num_outputs": 70,
    }
    options = {"root": str(toy / layout), "batch_size": 2, **SMALL}
    if layout == "mapillary":
        options |= {"cityscapes_root": str(toy / "cityscapes")}
    recipe = {
        "model": {
            "class_path": "SegmentationTask",
            "init_args": {"network": {"class_path": "Segmentor", "init_args": network}},
        },
        "data": {
            "class_path": LAYOUTS[layout][0],
            "init_args": {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "num_sanity_val_steps": 0},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    common = ["-c", str(path), "--trainer.default_root_dir", str(tmp_path / "runs")]
    assert main(["fit", *common]) == 0
    assert main(["validate", *common, "--ckpt_path", "last"]) == 0
    (table,) = (tmp_path / "runs" / "tiny").glob("validate_*/classes_val.csv")
    assert len(table.read_text().splitlines()) == LAYOUTS[layout][1] + 1
