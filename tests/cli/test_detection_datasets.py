"""An epoch of training and a validation on toy data in every layout, with its own metric."""

import csv
from pathlib import Path

import pytest
import yaml

from src.cli import main
from tests.cli.tiny import write_recipe
from tests.data.detection_trees import DATA_MODULES

METRICS = {"lvis": "LVISMetric", "openimages": "OpenImagesMetric", "voc": "VOCMetric"}
SCORES = {"lvis": "val/bbox_AP_rare", "crowdhuman": "val/bbox_AP50"}
SAMPLING = {
    "lvis": {"repeat_threshold": 1.0},
    "openimages": {"class_aware": True},
    "voc": {"repeat": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA_MODULES)
def test_fit_and_validate(tmp_path: Path, name: str) -> None:
    toy = ["toy", "--root", str(tmp_path), "--train=1", "--val=2", "--predict=1", "--size=64"]
    assert main(["prepare", *toy, "--layouts", name]) == 0
    arguments = {"root": str(tmp_path / name)} | SAMPLING.get(name, {})
    path = write_recipe(tmp_path, "detection", arguments)
    recipe = yaml.safe_load(path.read_text())
    recipe["data"]["class_path"] = DATA_MODULES[name]
    recipe["model"]["init_args"]["network"]["class_path"] = "CascadeRCNN"
    if name in METRICS:
        recipe["model"]["init_args"]["metric"] = {"class_path": METRICS[name]}
    path.write_text(yaml.safe_dump(recipe))
    assert main(["fit", "-c", str(path)]) == 0
    (folder,) = (tmp_path / "runs" / "detection").glob("version_*")
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert any(row.get("val/bbox_AP") for row in rows)
    assert SCORES.get(name, "val/bbox_AP") in rows[0]
    if name != "crowdhuman":  # it has one class
        assert (folder / "classes_val.csv").is_file()
    checkpoint = str(folder / "checkpoints" / "last.ckpt")
    assert main(["validate", "-c", str(path), "--ckpt_path", checkpoint]) == 0
