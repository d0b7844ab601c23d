"""The data module of iNaturalist: annotation files, dates and places, and a run of everything."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from src.cli import main
from src.cli.commands.verify import main as verify
from src.data import INaturalistDataModule
from src.data.formats.inaturalist import encode_date, encode_place
from src.data.toy.inaturalist import write_toy_inaturalist
from src.data.toy.layout import ToySettings
from src.errors import UserError

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.fixture
def root(tmp_path):
    write_toy_inaturalist(tmp_path / "inat", ToySettings(train=2, val=1, size=48))
    return tmp_path / "inat"


def data_of(root, stage="fit", **kwargs):
    data = INaturalistDataModule(str(root), image_size=32, batch_size=4, num_workers=0, **kwargs)
    data.setup(stage)
    return data


def test_cached_features_are_refused_by_the_name_of_the_folder(root):
    with pytest.raises(UserError, match=f"does not work with the annotation files in {root},"):
        data_of(root).use_features("train")


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_samples_have_their_date_and_place(root):
    data = data_of(root, eval_batch_size=10)
    assert data.class_names[:2] == ["arrow", "bolt"]
    (batch,) = data.val_dataloader()
    assert batch["label"].tolist() == list(range(10))
    locations = json.loads((root / "val2018_locations.json").read_text())
    for row, entry in enumerate(locations):
        expected = torch.tensor(encode_date(entry["date"]))
        assert torch.equal(batch["temporal"][row], expected)
        expected = torch.tensor(encode_place(entry["lat"], entry["lon"]))
        assert torch.equal(batch["spatial"][row], expected)
    assert batch["temporal"].dtype == batch["spatial"].dtype == torch.float32
    assert batch["temporal"].any()
    assert batch["spatial"].any()


def test_encoding():
    half = math.sqrt(3) / 2
    assert encode_date("2018-04-01 10:00") == pytest.approx((half, -0.5, 0, 0))
    assert encode_place(30, 90) == pytest.approx((0, half, 0.5))
    assert encode_date("2018-004-01") == encode_date("2018-4-1")
    for unknown in (None, "", "yesterday", 2018, "2018-13-01", f"2018-{'9' * 5000}-01"):
        assert encode_date(unknown) == (0, 0, 0, 0)
    unknowns = [(None, 5.0), (0.0, 5.0), (5.0, 0), (math.nan, 1.0), ("1", "2"), (10**400, 1.0)]
    for unknown in unknowns:
        assert encode_place(*unknown) == (0, 0, 0)


def test_classes_follow_the_order_of_the_file(root):
    for split in ("train", "val"):
        edit(root / f"{split}2018.json", lambda content: content["categories"].reverse())
    data = data_of(root, eval_batch_size=10)
    (batch,) = data.val_dataloader()
    assert batch["label"].tolist() == list(range(9, -1, -1))
    assert data.class_names[-1] == "arrow"


def test_without_locations_everything_is_unknown(root):
    data = data_of(root, "validate", val_locations=None)
    batch = next(iter(data.val_dataloader()))
    assert not batch["temporal"].any()
    assert not batch["spatial"].any()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("val2018_locations.json", lambda content: content.pop(), "has 9 entries, but"),
        ("val2018.json", lambda content: content["images"].pop(), "one annotation per image"),
        ("val2018.json", lambda content: content["images"].reverse(), "in the same order"),
        ("val2018.json", lambda content: content.pop("categories"), "no list of categories"),
        (
            "val2018.json",
            lambda content: content["annotations"][3].update(category_id=77),
            "category 77",
        ),
        ("val2018.json", lambda content: content["images"][2].pop("file_name"), "'file_name'"),
        (
            "val2018.json",
            lambda content: content["categories"][1].update(content["categories"][0]),
            "several categories with the same id",
        ),
        (
            "val2018.json",
            lambda content: content["categories"].reverse(),
            "has other categories than .*train2018.json, or has them in another order",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(root, file, change, message):
    edit(root / file, change)
    with pytest.raises(UserError, match=message):
        data_of(root, "validate")


def test_a_missing_file_is_named(root):
    (root / "val2018_locations.json").unlink()
    with pytest.raises(UserError, match=r"val2018_locations.* does not exist"):
        data_of(root, "validate")


def test_verify(root, capsys):
    assert verify(["inaturalist", "--root", str(root), "--decode", "--workers", "2"]) == 0
    text = capsys.readouterr().out
    assert "train2018.json: 20 images, 10 of 10 classes occur" in text
    assert "2 of 10 images" in text  # have no date
    next((root / "train_val2018" / "ring").glob("val_*")).unlink()
    edit(root / "train2018.json", lambda content: content["categories"].reverse())
    assert verify(["inaturalist", "--root", str(root)]) == 1
    text = capsys.readouterr().out
    assert "1 of 10 images" in text
    assert "their labels differ" in text


@pytest.fixture
def recipe(root, tmp_path):
    """The published recipe, with a tiny network on the toy data."""
    content = yaml.safe_load(
        (CONFIGS / "classification" / "internimage_h_22ktoinat18_384.yaml").read_text()
    )
    model = content["model"]["init_args"]
    model["weights"] = None
    model["network"]["init_args"] = {
        "channels": 8,
        "depths": [1, 1, 1, 1],
        "groups": [1, 2, 4, 8],
        "drop_path_rate": 0.1,
    }
    content["data"]["init_args"] |= {
        "root": str(root),
        "image_size": 32,
        "batch_size": 4,
        "num_workers": 0,
    }
    content["trainer"] |= {
        "max_epochs": 1,
        "accelerator": "cpu",
        "precision": "32-true",
        "default_root_dir": str(tmp_path / "runs"),
    }
    (tmp_path / "inat.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "inat.yaml"


def test_a_run(recipe, root, tmp_path):
    assert main(["fit", "-c", str(recipe)]) == 0
    assert (tmp_path / "runs" / "inat" / "version_0" / "metrics.csv").is_file()
    assert main(["validate", "-c", str(recipe), "--ckpt_path", "best"]) == 0
    predict = ["predict", "-c", str(recipe), "--ckpt_path", "best"]
    assert main([*predict, "--data.predict_dir", str(root / "train_val2018" / "ring")]) == 0


def test_images_with_metadata_are_not_mixed(recipe, capsys):
    assert main(["fit", "-c", str(recipe), "--model.mixup_alpha", "0.8"]) == 2
    assert "mixup and CutMix mix images, but not their dates" in capsys.readouterr().err


def test_a_network_without_metadata_reads_the_images_alone(recipe):
    assert main(["fit", "-c", str(recipe), "--model.network.class_path", "InternImage"]) == 0
