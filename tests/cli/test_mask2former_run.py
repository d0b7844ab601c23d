"""Mask2Former on the command line: fit, augmented validation, prediction, unusual images."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

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
