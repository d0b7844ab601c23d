"""ImageNet-22k: list files, label sets and the translation between them, results on ImageNet-1k."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from src.cli import build, main
from src.cli.commands.prepare import main as prepare
from src.cli.commands.verify import main as verify
from src.data import ImageNet22kDataModule
from src.data.classes.imagenet22k import label_set, map_labels, readable_synsets
from src.errors import UserError

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
# Two classes that fall-2011 and ImageNet-1k share, one that only fall-2011 has, a person of
# fall-2011 that winter-2021 lacks, and the one class of ImageNet-1k that fall-2011 lacks.
TENCH, GOLDFISH, BENTHOS, PERSON, TEDDY = (
    "n01440764",
    "n01443537",
    "n00005787",
    "n00007846",
    "n04399382",
)
IMAGES = {TENCH: 6, GOLDFISH: 5, BENTHOS: 4, PERSON: 2}


def write_images(folder, counts):
    for number, (synset, count) in enumerate(counts.items()):
        (folder / synset).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((40, 40, 3), 50 * number + index, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / synset / f"{synset}_{index}.JPEG")


@pytest.fixture
def root(tmp_path):
    """Images of four classes, with the lists of fall-2011 beside them."""
    write_images(tmp_path / "in22k" / "images", IMAGES)
    labels = {synset: label for label, synset in enumerate(label_set("fall-2011"))}
    for split in ("train", "val"):
        lines = [
            f"images/{synset}/{synset}_{index}.JPEG\t{labels[synset]}\n"
            for synset, count in IMAGES.items()
            for index in range(count)
            if (index >= 1) == (split == "train")
        ]
        path = tmp_path / "in22k" / f"ILSVRC2011fall_whole_map_{split}.txt"
        path.write_text("".join(lines))
    (tmp_path / "winter.txt").write_text(f"{BENTHOS}\n{TENCH}\n{GOLDFISH}\n")
    return tmp_path / "in22k"


def data_of(root, stage="validate", **kwargs):
    data = ImageNet22kDataModule(str(root), image_size=32, batch_size=4, num_workers=0, **kwargs)
    data.setup(stage)
    return data


def labels_of(data):
    return [label for batch in data.val_dataloader() for label in batch["label"].tolist()]


def test_label_sets():
    fall, imagenet_1k = label_set("fall-2011"), label_set("imagenet-1k")
    assert len(fall) == len(set(fall)) == 21841
    assert fall == sorted(fall)
    rows = map_labels(imagenet_1k, fall)
    assert [imagenet_1k[i] for i, row in enumerate(rows) if row < 0] == [TEDDY]
    assert fall[rows[0]] == TENCH
    assert readable_synsets([TENCH, TEDDY, "n99999999"]) == ["tench", "teddy", "n99999999"]
    names = ImageNet22kDataModule.official_class_names()
    assert len(set(names)) == 21841


def test_labels_by_synset_as_in_the_official_file(tmp_path):
    path = tmp_path / "22k_class_to_idx.json"
    path.write_text(json.dumps({TENCH: 1, BENTHOS: 0}))
    assert label_set(path) == [BENTHOS, TENCH]
    path.write_text(json.dumps({TENCH: 1, BENTHOS: 2}))
    with pytest.raises(UserError, match="counted from 0 without gaps"):
        label_set(path)
    with pytest.raises(UserError, match="prepare imagenet22k"):
        label_set("winter-2021")
    path = tmp_path / "names.txt"
    path.write_text("tench\n")
    with pytest.raises(UserError, match="holds 'tench'"):
        label_set(path)


def test_lists_of_fall_2011(root):
    data = data_of(root)
    assert data.num_classes == 21841
    assert data.class_names[1].startswith("benthos")
    expected = [label_set("fall-2011").index(synset) for synset in IMAGES]
    assert labels_of(data) == expected


def test_classes_of_winter_2021_from_lists_of_fall_2011(root):
    winter = str(root.parent / "winter.txt")
    data = data_of(root, "fit", classes=winter, list_classes="fall-2011")
    assert data.class_names == ["benthos", "tench", "goldfish"]
    assert labels_of(data) == [1, 2, 0]
    assert "12 of 13 for training (left out: 1 of a class that data.classes" in data.images_in_use


@pytest.mark.parametrize("line", ["a.JPEG 5", "a.JPEG\t3", "a.txt\t0", f"a.JPEG\t{PERSON}"])
def test_lines_that_cannot_be_read_are_named(root, line):
    (root / "list.txt").write_text(f"\n{line}\n")
    with pytest.raises(UserError, match="Line 2 of"):
        data_of(root, val_list="list.txt", classes=str(root.parent / "winter.txt"))


def test_a_missing_list_is_named(root):
    with pytest.raises(UserError, match=r"absent.* does not exist"):
        data_of(root, val_list="absent.txt")


def test_lists_from_class_folders(root, capsys):
    prepare(["imagenet22k", "--images", str(root / "images")])
    assert "classes.txt (4 classes), train.txt (13 images) and val.txt (4 images)" in (
        capsys.readouterr().out
    )
    lists = {"train_list": "train.txt", "val_list": "val.txt"}
    data = data_of(root, classes=str(root / "classes.txt"), **lists)
    assert data.synsets == sorted(IMAGES)
    options = ["--classes", str(root / "classes.txt"), "--lists", "train.txt", "val.txt"]
    assert verify(["imagenet22k", "--root", str(root), "--decode", *options]) == 0
    assert "val.txt: 4 images, 2 of 4 classes occur" in capsys.readouterr().out
    (root / "images" / TENCH / f"{TENCH}_5.JPEG").unlink()
    assert verify(["imagenet22k", "--root", str(root), *options]) == 1
    assert f"{TENCH}_5.JPEG does not exist" in capsys.readouterr().out


@pytest.fixture
def imagenet_1k(tmp_path):
    write_images(tmp_path / "val", {TENCH: 2, GOLDFISH: 1, TEDDY: 3})
    return str(tmp_path / "val")


def test_images_of_imagenet_1k(root, imagenet_1k):
    data = data_of(root, imagenet_1k=imagenet_1k)
    fall = label_set("fall-2011")
    tench, goldfish = fall.index(TENCH), fall.index(GOLDFISH)
    assert labels_of(data) == [tench, tench, goldfish]
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert batch["candidates"].tolist() == [tench, goldfish]
    assert "3 of 6 for validation (left out: 3 of a class that the network lacks" in (
        data.images_in_use
    )


@pytest.fixture
def run_of(root, recipe, tmp_path):
    """A run of a tiny network on winter classes."""
    model = recipe["model"]["init_args"] | {"mixup_alpha": 0.0, "cutmix_alpha": 0.0}
    content = recipe | {
        "model": recipe["model"] | {"init_args": model},
        "data": {
            "class_path": "ImageNet22kDataModule",
            "init_args": {
                "root": str(root),
                "classes": str(tmp_path / "winter.txt"),
                "list_classes": "fall-2011",
                "image_size": 32,
                "batch_size": 4,
                "num_workers": 0,
            },
        },
        "trainer": recipe["trainer"]
        | {"max_epochs": 1, "callbacks": [], "default_root_dir": str(tmp_path / "runs")},
    }
    path = tmp_path / "in22k.yaml"
    path.write_text(yaml.safe_dump(content))
    assert main(["fit", "-c", str(path)]) == 0
    return path


def test_a_run(run_of, imagenet_1k, capsys):
    arguments = ["validate", "-c", str(run_of), "--ckpt_path", "last"]
    assert main([*arguments, "--data.imagenet_1k", imagenet_1k]) == 0
    assert "top1" in capsys.readouterr().out


def test_only_the_candidates_are_predicted():
    from src.tasks.classification import _among

    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]])
    chosen = _among(logits, torch.tensor([1, 2]))
    assert chosen.argmax(1).tolist() == [2, 1]
    assert torch.equal(chosen.softmax(1)[:, 1:], logits[:, 1:].softmax(1))
    assert torch.equal(_among(logits, None), logits)


@pytest.mark.parametrize(("variant", "drop_path"), [("l", 0.1), ("xl", 0.2)])
def test_recipes(root, variant, drop_path):
    """The numbers of the paper: 192 pixels, 90 epochs, rate 1e-3 for 4096 images, 5 to warm up."""
    built = {}
    for size in ("192", "192to384"):
        config = CONFIGS / "classification" / f"internimage_{variant}_22k_{size}.yaml"
        arguments = ["--config", str(config), "--model.weights", "null", "--data.root", str(root)]
        with torch.device("meta"):
            built[size] = build(arguments)
        assert built[size].model.num_classes == 21841
        assert built[size].model.network.head.weight.shape[0] == 21841
    cli = built["192"]
    optimizer = cli.model.optimization.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.defaults["lr"] * 4096 / 512 == pytest.approx(1e-3)
    assert optimizer.defaults["weight_decay"] == 0.05
    assert cli.model.optimization.reference_batch_size == 512
    assert (cli.trainer.max_epochs, cli.datamodule.image_size) == (90, 192)
    assert cli.model.label_smoothing == 0.1
    assert cli.model.network.levels[-1].blocks[-1].drop_path.drop_prob == drop_path
    assert built["192to384"].datamodule.image_size == 384
