"""Segmentation on the command line with synthetic scenes: fit, validate, test, predict."""

import csv
import subprocess
import sys
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
    """Working directory with synthetic scenes, a tiny recipe and its completed run."""
    folder = tmp_path_factory.mktemp("segmentation")
    size = ["--train", "2", "--val", "3", "--predict", "2", "--size", "48"]
    prepare(["toy", "--root", str(folder / "toy"), *size])
    recipe = yaml.safe_load((ROOT / "configs" / "toy" / "segmentation.yaml").read_text())
    parts = recipe["model"]["init_args"]["network"]["init_args"]
    tiny = {"channels": 8, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]}
    parts["backbone"]["init_args"] = tiny
    parts["decode_head"]["init_args"] = {"channels": 8}
    parts["auxiliary_head"] = {"class_path": "FCNHead", "init_args": {"channels": 8}}
    recipe["data"]["init_args"] |= {
        "root": str(folder / "toy" / "ade20k"),
        "image_scale": [192, 48],
        "crop_size": [32, 32],
        "batch_size": 4,
        "eval_batch_size": 1,
        "num_workers": 0,
        "predict_dir": str(folder / "toy" / "ade20k" / "predict"),
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


def labelled_pixels(folder, label):
    """Pixels of a class in the validation label maps, which count from 1."""
    maps = (folder / "toy/ade20k/annotations/validation").glob("*.png")
    return sum(int((np.asarray(Image.open(path)) == label + 1).sum()) for path in maps)


def last_values(path):
    with path.open() as file:
        return {k: float(v) for row in csv.DictReader(file) for k, v in row.items() if v}


def test_fit_logs_metrics_and_per_class_results(folder):
    run_folder = newest(folder, "version")
    values = last_values(run_folder / "metrics.csv")
    expected = {"train/loss", "train/loss_decode", "train/loss_aux"}
    assert expected | {"val/loss", "val/mIoU", "val/mAcc", "val/aAcc"} <= values.keys()
    with (run_folder / "classes_val.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows][:2] == ["background", "arrow"]
    assert list(rows[0]) == ["class", "pixels", "IoU", "Acc"]
    for number, row in enumerate(rows):
        assert int(row["pixels"]) == labelled_pixels(folder, number)
    scores = [float(row["IoU"]) for row in rows if row["IoU"]]
    assert np.mean(scores) == pytest.approx(values["val/mIoU"], abs=1e-4)


def test_validate_prints_a_per_class_table(folder, capsys):
    assert run(folder, "validate", "--ckpt_path", "last") == 0
    text = capsys.readouterr().out
    assert text.index("mIoU") < text.index("background")  # means first, then classes
    assert (newest(folder, "validate") / "classes_val.csv").is_file()


def test_flag_for_augmentation_and_sliding_windows(folder):
    more = ["--data.tta", "true", "--data.tta_ratios", "[0.5,1.0]"]
    more += ["--model.window_size", "[32,32]", "--model.window_stride", "[16,16]"]
    assert run(folder, "test", "--ckpt_path", "last", *more) == 0
    assert 0 <= last_values(newest(folder, "test") / "metrics.csv")["test/mIoU"] <= 1


def test_the_images_of_a_test_are_named(folder, capsys):
    assert run(folder, "test", "--ckpt_path", "last") == 0
    title = "Results of the validation images, as there are no test images"
    assert title in capsys.readouterr().out
    other = ["--data.test_images", "images/training", "--data.test_labels", "annotations/training"]
    assert run(folder, "test", "--ckpt_path", "last", *other) == 0
    assert "Results of the test images" in capsys.readouterr().out


def test_predict_writes_label_maps_and_overlays(folder):
    assert run(folder, "predict", "--ckpt_path", "best") == 0
    results = newest(folder, "predict")
    maps = sorted((results / "label_maps").glob("*.png"))
    assert [path.name for path in maps] == ["scene_0000.png", "scene_0001.png"]
    values = np.array(Image.open(maps[0]))
    assert values.shape == (48, 48)
    assert values.max() < 11
    assert len(list((results / "overlays").glob("*.png"))) == 2


def test_user_errors_are_one_line(folder, capsys):
    names = "[background,arrow]"
    assert run(folder, "validate", "--ckpt_path", "last", "--data.class_names", names) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert run(folder, "fit", "--data.train_labels", "annotations/nowhere") == 2
    assert "annotations/nowhere does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_validate_like_one(folder):
    # Five images cannot be divided evenly among two ranks.
    next((folder / "toy" / "ade20k" / "images" / "validation").glob("*_0005.jpg")).unlink()
    scores = []
    for devices in ("1", "2"):
        command = arguments(folder, "validate", "--ckpt_path", "last")
        command += ["--trainer.devices", devices, "--trainer.strategy"]
        command += ["ddp" if devices == "2" else "auto"]
        done = subprocess.run([sys.executable, "-m", "src", *command], cwd=ROOT, check=False)
        assert done.returncode == 0
        values = last_values(newest(folder, "validate") / "metrics.csv")
        scores.append([values[f"val/{name}"] for name in ("mIoU", "mAcc", "aAcc", "loss")])
    assert scores[0][:3] == scores[1][:3]
    assert scores[0][3] == pytest.approx(scores[1][3], rel=1e-6)
