"""DINO on the command line with synthetic scenes: fit, validate with augmentation, predict."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from src.cli import main
from src.data.toy.coco import write_toy_coco
from src.data.toy.layout import ToySettings

ROOT = Path(__file__).resolve().parents[2]
TINY_BACKBONE = {
    "channels": 8,
    "depths": [1, 1, 1, 1],
    "groups": [1, 2, 4, 8],
    "out_indices": [1, 2, 3],
}


def tiny(root, source="dino"):
    """The toy recipe with a tiny network and tiny images."""
    recipe = yaml.safe_load((ROOT / "configs" / "toy" / f"{source}.yaml").read_text())
    network = recipe["model"]["init_args"]["network"]["init_args"]
    network["backbone"]["init_args"] = dict(TINY_BACKBONE)
    if source == "dino":
        network |= {"channels": 64, "encoder_layers": 1, "decoder_layers": 2}
    recipe["data"]["init_args"] |= {
        "root": str(root),
        "train_scales": [[64, 48]],
        "eval_scale": [64, 48],
        "batch_size": 4,
        "num_workers": 0,
        "predict_dir": str(root / "predict"),
    }
    recipe["trainer"] |= {"max_epochs": 1, "check_val_every_n_epoch": 1}
    return recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Working directory with synthetic scenes, a tiny recipe and its completed run."""
    folder = tmp_path_factory.mktemp("dino")
    root = folder / "toy"
    write_toy_coco(root, ToySettings(train=2, val=3, predict=2, size=64))
    content = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]  # DINO needs only boxes
    (root / "boxes.json").write_text(json.dumps(content))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny(root)))
    assert run(folder, "fit", "--data.train_annotations", "boxes.json") == 0
    return folder


def run(folder, command, *more):
    given = [command, "-c", str(folder / "tiny.yaml")]
    return main([*given, "--trainer.default_root_dir", str(folder / "runs"), *more])


def newest(folder, prefix):
    return max(
        (folder / "runs" / "tiny").glob(f"{prefix}_*"), key=lambda path: path.stat().st_mtime
    )


def last_values(path):
    with path.open() as file:
        return {k: float(v) for row in csv.DictReader(file) for k, v in row.items() if v}


def test_fit_logs_all_losses_and_box_metrics_only(folder):
    run_folder = newest(folder, "version")
    values = last_values(run_folder / "metrics.csv")
    losses = {"loss_cls", "d0.loss_iou", "interm_loss_bbox", "dn_loss_cls", "d0.dn_loss_bbox"}
    assert {f"train/{name}" for name in losses} <= values.keys()
    assert {name for name in values if name.startswith("val/bbox_")}
    assert not any("segm" in name for name in values)
    with (run_folder / "classes_val.csv").open() as file:
        assert next(csv.reader(file)) == ["class", "objects", "bbox_AP", "bbox_AP50"]


def test_validate_plain_and_with_several_views(folder):
    results = []
    for more in ([], ["--data.tta", "true", "--data.tta_ratios", "[1.0, 1.5]"]):
        assert run(folder, "validate", "--ckpt_path", "last", *more) == 0
        results.append(json.loads((newest(folder, "validate") / "results_val.json").read_text()))
    plain, fused = results
    assert 0 < len(fused) <= len(plain)  # boxes of several views are merged
    assert plain[0].keys() == {"image_id", "category_id", "bbox", "score"}
    assert [r["score"] for r in plain] != [r["score"] for r in fused]


def test_predict_draws_boxes(folder):
    arguments = ["--ckpt_path", "best", "--detections.score", "0.0", "--data.tta", "true"]
    assert run(folder, "predict", *arguments) == 0
    results = newest(folder, "predict")
    content = json.loads((results / "detections.json").read_text())
    assert 0 < len(content["annotations"]) <= 20 * len(content["images"])
    for path in (results / "overlays").glob("*.png"):
        assert min(Image.open(path).size) >= 200


@pytest.mark.slow
def test_user_errors_are_one_line(folder, capsys):
    recipe = tiny(folder / "toy", "detection")
    recipe["model"]["init_args"]["network"]["init_args"]["score_threshold"] = 0.0
    del recipe["model"]["init_args"]["network"]["init_args"]["backbone"]["init_args"]["out_indices"]
    (folder / "masks.yaml").write_text(yaml.safe_dump(recipe))
    wrong = [
        ("tiny", ["fit", "--model.backbone_lr_scale", "0.1", "--model.layer_decay", "0.9"],
         "null if layer_decay is set"),
        ("tiny", ["fit", "--data.tta_ratios", "[0]"], "tta_ratios"),
        ("masks", ["fit", "--data.masks", "false"], "data.masks is false"),
        ("masks", ["validate", "--data.tta", "true"], "set data.tta to false"),
    ]  # fmt: skip
    for name, (command, *more), message in wrong:
        given = [command, "-c", str(folder / f"{name}.yaml"), *more]
        assert main([*given, "--trainer.default_root_dir", str(folder / "runs")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
