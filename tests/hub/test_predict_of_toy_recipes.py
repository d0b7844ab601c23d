"""`Pretrained.predict` equals `predict` for detectors of the toy recipes."""

import json
from pathlib import Path

import numpy as np
import pytest

from src.cli import main
from src.hub import Pretrained
from tests.cli.tiny import ROOT, save_image, write_data

SIZES = [(100, 70), (70, 100), (64, 64), (150, 40), (48, 96), (160, 120)]


@pytest.mark.parametrize("recipe", ["detection", "dino"])
def test_images_of_different_sizes_have_the_same_boxes(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that are padded together would change each other's scores and boxes."""
    monkeypatch.chdir(tmp_path)
    data = write_data(tmp_path / "data", "detection", count=8)
    settings = [f"--data.{name}={value}" for name, value in data.items()]
    fit = ["fit", "-c", str(ROOT / "configs/toy" / f"{recipe}.yaml"), "--name", "toy", *settings]
    short = ["--trainer.max_steps", "1", "--trainer.max_epochs", "1", "--data.num_workers", "0"]
    quick = ["--trainer.num_sanity_val_steps", "0", "--trainer.check_val_every_n_epoch", "1"]
    all_boxes = ["--model.network.score_threshold", "0.0"] if recipe == "detection" else []
    assert main([*fit, *short, *quick, *all_boxes]) == 0
    paths = [
        save_image(tmp_path / "photos" / f"{number}.png", number, size)
        for number, size in enumerate(SIZES)
    ]
    assert main(["predict", "--name", "toy", "--data.predict_dir", "photos"]) == 0
    written = json.loads(Path("runs/toy/predict_0/detections.json").read_text())
    results = Pretrained.from_pretrained("runs/toy").predict([str(path) for path in paths])
    ids = {Path(image["file_name"]).name: image["id"] for image in written["images"]}
    for path, result in zip(paths, results, strict=True):
        found = [a for a in written["annotations"] if a["image_id"] == ids[path.name]]
        assert len(found) == len(result) > 0
        expected = np.array([one["score"] for one in found])
        np.testing.assert_allclose(result.scores.numpy(), expected, rtol=0, atol=1e-6)
        boxes = np.array([one["bbox"] for one in found])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(result.boxes.numpy(), boxes, rtol=0, atol=1e-6)
