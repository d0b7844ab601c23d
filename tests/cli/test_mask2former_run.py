"""Mask2Former on the command line: fit, augmented validation, prediction, unusual images."""

import contextlib
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from src.cli import main
from src.cli.commands.prepare import main as prepare

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Working directory with scenes (one unlabelled), a tiny recipe and its completed run."""
    folder = tmp_path_factory.mktemp("mask2former")
    size = ["--train", "1", "--val", "1", "--predict", "1", "--size", "48"]
    prepare(["toy", "--root", str(folder / "toy"), *size])
    data = folder / "toy" / "ade20k"
    label = min((data / "annotations" / "training").glob("*.png"))
    Image.fromarray(np.zeros_like(np.array(Image.open(label)))).save(label)
    Image.new("RGB", (3, 2)).save(data / "predict" / "tiny.png")
    recipe = yaml.safe_load((ROOT / "configs" / "toy" / "mask2former.yaml").read_text())
    parts = recipe["model"]["init_args"]["network"]["init_args"]
    tiny = {"channels": 8, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]}
    parts["backbone"]["init_args"] = tiny
    parts["decode_head"]["init_args"] |= {
        "channels": 16,
        "num_queries": 8,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "norm_groups": 4,
    }
    recipe["data"]["init_args"] |= {
        "root": str(data),
        "image_scale": [192, 48],
        "crop_size": [32, 32],
        "batch_size": 1,
        "eval_batch_size": 1,
        "num_workers": 0,
        "predict_dir": str(data / "predict"),
    }
    recipe["trainer"] |= {"max_epochs": 1, "check_val_every_n_epoch": 1}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    assert run(folder, "fit") == 0
    return folder


def run(folder, command, *more):
    given = [command, "-c", str(folder / "tiny.yaml")]
    return main([*given, "--trainer.default_root_dir", str(folder / "runs"), *more])


def last_values(folder, prefix):
    (path,) = (folder / "runs" / "tiny").glob(f"{prefix}_*/metrics.csv")
    with path.open() as file:
        return {k: float(v) for row in csv.DictReader(file) for k, v in row.items() if v}


def test_fit_logs_the_losses_of_every_layer(folder):
    values = last_values(folder, "version")
    losses = {
        f"train/{layer}loss_{kind}"
        for layer in ("", "layer0_")
        for kind in ("class", "mask", "dice")
    }
    assert losses | {"train/loss", "val/loss", "val/mIoU"} <= values.keys()
    assert np.isfinite(list(values.values())).all()


def test_test_time_augmentation_is_a_flag(folder):
    more = ["--ckpt_path", "last", "--data.tta", "true", "--data.tta_ratios", "[0.5,1.0]"]
    assert run(folder, "validate", *more) == 0
    assert 0 <= last_values(folder, "validate")["val/mIoU"] <= 1


def test_predict_accepts_the_smallest_image(folder):
    assert run(folder, "predict", "--ckpt_path", "last", "--data.tta", "true") == 0
    (maps,) = (folder / "runs" / "tiny").glob("predict_*/label_maps")
    sizes = {path.name: Image.open(path).size for path in maps.glob("*.png")}
    assert sizes == {"scene_0000.png": (48, 48), "tiny.png": (3, 2)}


def test_panoptic_segments_and_instances(folder):
    options = ["--model.panoptic.things", "[star, ring]"]
    for threshold in ("object_threshold", "overlap_threshold"):  # it is hardly trained
        options += [f"--model.panoptic.{threshold}", "0"]
    before = set((folder / "runs" / "tiny").glob("predict_*"))
    assert run(folder, "predict", "--ckpt_path", "last", *options) == 0
    (output,) = set((folder / "runs" / "tiny").glob("predict_*")) - before
    result = output / "panoptic.json"
    content = json.loads(result.read_text())
    counted = {entry["name"] for entry in content["categories"] if entry["isthing"]}
    assert counted == {"star", "ring"}
    assert len(content["images"]) == len(content["annotations"]) == 2
    found = 0
    for image, entry in zip(content["images"], content["annotations"], strict=True):
        pixels = np.array(Image.open(result.with_suffix("") / entry["file_name"])).astype(int)
        assert pixels.shape == (image["height"], image["width"], 3)
        ids = pixels @ [1, 256, 65536]
        areas = {part["id"]: part["area"] for part in entry["segments_info"]}
        assert areas == {int(i): int((ids == i).sum()) for i in np.unique(ids) if i}
        found += len(areas)
    assert found
    with contextlib.redirect_stdout(io.StringIO()):
        instances = list(COCO(str(result.parent / "instances.json")).anns.values())
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    assert {names[entry["category_id"]] for entry in instances} <= {"star", "ring"}
    assert all(0 <= entry["score"] <= 1 and entry["segmentation"] for entry in instances)


def test_panoptic_segments_need_whole_images_and_known_classes(folder, capsys):
    predict = ["predict", "--ckpt_path", "last", "--model.panoptic.things"]
    assert run(folder, *predict, "[car]") == 2
    assert "there is no class 'car'" in capsys.readouterr().err
    window = ["--model.window_size", "[32, 32]"]
    assert run(folder, *predict, "[star]", *window) == 2
    assert "predicts on whole images" in capsys.readouterr().err
