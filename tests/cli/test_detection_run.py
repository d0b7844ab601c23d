"""Detection on the command line with synthetic scenes: fit, validate, test, predict, errors."""

import contextlib
import csv
import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.cli import build, main
from src.data.toy.coco import write_toy_coco
from src.data.toy.layout import ToySettings

ROOT = Path(__file__).resolve().parents[2]
TINY_BACKBONE = {"channels": 8, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Working directory with synthetic scenes, a tiny recipe and its completed run."""
    folder = tmp_path_factory.mktemp("detection")
    write_toy_coco(folder / "toy", ToySettings(train=2, val=3, predict=2, size=64))
    recipe = yaml.safe_load((ROOT / "configs" / "toy" / "detection.yaml").read_text())
    network = recipe["model"]["init_args"]["network"]["init_args"]
    network["backbone"]["init_args"] = TINY_BACKBONE
    # An untrained detector has low scores; without a threshold there are boxes to compare.
    network |= {"channels": 16, "fc_channels": 32, "score_threshold": 0.0}
    network["box_batch_size_per_image"] = 16
    recipe["data"]["init_args"] |= {
        "root": str(folder / "toy"),
        "train_scales": [[64, 48]],
        "eval_scale": [64, 48],
        "batch_size": 4,
        "num_workers": 0,
        "predict_dir": str(folder / "toy" / "predict"),
    }
    recipe["trainer"] |= {"max_epochs": 2, "check_val_every_n_epoch": 1}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    assert run(folder, "fit") == 0
    return folder


def arguments(folder, command, *more):
    given = [command, "-c", str(folder / "tiny.yaml")]
    return [*given, "--trainer.default_root_dir", str(folder / "runs"), *more]


def run(folder, command, *more):
    return main(arguments(folder, command, *more))


def newest(folder, prefix):
    return max(
        (folder / "runs" / "tiny").glob(f"{prefix}_*"), key=lambda path: path.stat().st_mtime
    )


def last_values(path):
    with path.open() as file:
        return {k: float(v) for row in csv.DictReader(file) for k, v in row.items() if v}


def test_fit_logs_losses_coco_metrics_and_per_class_results(folder):
    run_folder = newest(folder, "version")
    values = last_values(run_folder / "metrics.csv")
    losses = {"loss", "loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask", "acc"}
    assert {f"train/{name}" for name in losses} <= values.keys()
    assert {"val/bbox_AP", "val/bbox_AR_large", "val/segm_AP", "val/segm_AP_small"} <= values.keys()
    assert sum(key.startswith("val/") for key in values) == 24
    with (run_folder / "classes_val.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["class", "objects", "bbox_AP", "bbox_AP50", "segm_AP", "segm_AP50"]
    truth = json.loads((folder / "toy/annotations/instances_val2017.json").read_text())
    assert sum(int(row["objects"]) for row in rows) == len(truth["annotations"])
    assert rows[0]["class"] == "arrow"
    assert not list(run_folder.glob("results_*.json"))


def test_saved_results_have_the_logged_metrics(folder):
    assert run(folder, "validate", "--ckpt_path", "last") == 0
    run_folder = newest(folder, "validate")
    values = last_values(run_folder / "metrics.csv")
    results = json.loads((run_folder / "results_val.json").read_text())
    assert results
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "toy" / "annotations" / "instances_val2017.json"))
        for kind, unwanted in (("bbox", "segmentation"), ("segm", "bbox")):
            kept = [{k: v for k, v in r.items() if k != unwanted} for r in results]
            evaluation = COCOeval(truth, truth.loadRes(kept), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
            ours = [values[f"val/{kind}_{name}"] for name in names]
            stats = [math.nan if value < 0 else value for value in evaluation.stats[:6].tolist()]
            assert ours == pytest.approx(stats, abs=1e-6, nan_ok=True)


def test_predict_writes_overlays_and_results_with_category_ids(folder):
    assert run(folder, "predict", "--ckpt_path", "best", "--detections.score", "0.0") == 0
    results = newest(folder, "predict")
    overlays = sorted((results / "overlays").glob("*.png"))
    assert [path.name for path in overlays] == ["000000000001.png", "000000000002.png"]
    assert min(Image.open(overlays[0]).size) >= 200  # enlarged, so that class names are legible
    content = json.loads((results / "detections.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2]
    assert content["categories"][0] == {"id": 1, "name": "arrow"}
    assert {a["category_id"] for a in content["annotations"]} <= set(range(1, 11))
    with contextlib.redirect_stdout(io.StringIO()):
        written = COCO(str(results / "detections.json"))
    found = written.loadAnns(written.getAnnIds(imgIds=[1]))
    assert found == [a for a in content["annotations"] if a["image_id"] == 1] != []
    assert written.annToMask(found[0]).sum() == found[0]["area"]


def test_a_run_predicts_without_its_annotations(folder, tmp_path, monkeypatch):
    """The recipes that ``prepare`` writes have ``root: .``, which is always there."""
    shutil.copytree(newest(folder, "version"), tmp_path / "runs" / "moved" / "version_0")
    config = tmp_path / "runs" / "moved" / "version_0" / "config.yaml"
    config.write_text(config.read_text().replace(f"root: {folder / 'toy'}", "root: ."))
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--name", "moved", "--trainer.default_root_dir", "runs"]) == 0
    content = json.loads(Path("runs/moved/predict_0/detections.json").read_text())
    assert content["categories"][0]["name"] == "arrow"


def test_predict_on_images_of_any_mode_and_folder(folder, tmp_path):
    (tmp_path / "holiday").mkdir()
    Image.new("L", (200, 30), 128).save(tmp_path / "holiday" / "grey.png")
    Image.new("RGBA", (30, 200)).save(tmp_path / "holiday" / "clear.webp")
    assert run(folder, "predict", "--ckpt_path", "best", "--data.predict_dir", str(tmp_path)) == 0
    names = [path.name for path in (newest(folder, "predict") / "overlays").rglob("*.png")]
    assert sorted(names) == ["clear.png", "grey.png"]


def test_user_errors_are_one_line(folder, capsys):
    (folder / "broken.json").write_text('{"images": []}')
    wrong = [
        (["--data.train_annotations", "nowhere.json"], "nowhere.json does not exist"),
        (["--data.train_annotations", str(folder / "broken.json")], "is not a COCO annotation"),
        (["--data.train_images", "elsewhere"], "there is no such file"),
        (["--model.dcn_lr_scale", "0.1"], "dcn_lr_scale is only supported for classification"),
    ]
    for more, message in wrong:
        assert run(folder, "fit", *more) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_learning_rates_follow_the_detection_rule(folder):
    cli = build(
        [
            *arguments(folder, "fit")[1:],
            "--model.layer_decay",
            "0.5",
            "--model.offset_lr_scale",
            "0",
        ]
    )
    groups = cli.model.parameter_groups()
    network = cli.model.network
    by_parameter = {id(p): group for group in groups for p in group["params"]}

    def scale(name):
        return by_parameter[id(network.get_parameter(name))]["lr_scale"]

    assert scale("backbone.patch_embed.conv1.weight") == 0.5**5
    assert scale("backbone.levels.3.blocks.0.mlp.fc1.weight") == 0.5
    assert scale("backbone.levels.0.downsample.conv.weight") == 0.5**3
    assert scale("neck.fpn_convs.0.conv.weight") == 1
    decays = {
        n for n, p in network.named_parameters() if by_parameter[id(p)].get("weight_decay") != 0
    }
    assert "roi_head.bbox_head.fc_cls.weight" in decays
    assert not any(name.endswith(".bias") or ".norm" in name for name in decays)


def test_cascade_trains_with_ema(folder):
    recipe = yaml.safe_load((folder / "tiny.yaml").read_text())
    recipe["model"]["init_args"]["network"]["class_path"] = "CascadeMaskRCNN"
    recipe["trainer"] |= {
        "max_epochs": 1,
        "callbacks": [{"class_path": "EMA", "init_args": {"warmup_steps": 10}}],
    }
    (folder / "cascade.yaml").write_text(yaml.safe_dump(recipe))
    more = ["--trainer.default_root_dir", str(folder / "runs")]
    assert main(["fit", "-c", str(folder / "cascade.yaml"), *more]) == 0
    values = last_values(folder / "runs" / "cascade" / "version_0" / "metrics.csv")
    assert {"train/s0.loss_cls", "train/s2.loss_mask", "val/bbox_AP", "val/bbox_AP_raw"} <= set(
        values
    )


def test_16_bit_training_keeps_losses_finite(folder):
    more = ["--trainer.precision", "bf16-mixed", "--trainer.max_epochs", "1", "--name", "half"]
    assert run(folder, "fit", *more) == 0
    values = last_values(folder / "runs" / "half" / "version_0" / "metrics.csv")
    assert torch.tensor(values["train/loss"]).isfinite()


@pytest.mark.slow
def test_two_ranks_validate_like_one(folder):
    scores, two = [], ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    validate = arguments(folder, "validate", "--ckpt_path", "last")
    for start in (
        lambda: main(validate),
        lambda: subprocess.call([sys.executable, "-m", "src", *validate, *two], cwd=ROOT),
    ):
        assert start() == 0
        values = last_values(newest(folder, "validate") / "metrics.csv")
        scores.append({key: v for key, v in values.items() if key.startswith("val/")})
    assert len(scores[0]) == 24
    assert scores[0] == scores[1]
