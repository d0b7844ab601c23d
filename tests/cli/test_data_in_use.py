"""Start report on the training data, and data loader workers that are not forked."""

import pickle
import shutil
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from PIL import Image

from src.cli import build, main
from tests.cli.tiny import (
    TASKS,
    save_image,
    save_mask,
    write_annotations,
    write_data,
    write_recipe,
)

DRY = ("--trainer.fast_dev_run", "true", "--trainer.enable_progress_bar", "false")


def test_skipped_training_images_are_counted_per_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data", "detection")
    sizes = [(64, 48), (64, 48), (64, 20), (64, 48), (64, 48)]
    path = write_annotations(tmp_path / "data" / "labels.json", sizes)
    path.write_text(path.read_text().replace('"image_id": 3', '"image_id": 1'))
    save_image(tmp_path / "data" / "images" / "2.png", size=(64, 20))
    save_image(tmp_path / "data" / "images" / "4.png")
    assert main(["fit", "-c", str(write_recipe(tmp_path, "detection", data)), *DRY]) == 0
    assert (
        "3 of 5 for training (left out: 1 with a side below 32 pixels (data.min_size); 1 without "
        "annotations (data.keep_empty)), 5 for validation"
    ) in capsys.readouterr().out


def test_images_without_the_suffix_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data", "segmentation")
    save_image(tmp_path / "data" / "images" / "4.bmp")
    data |= {"image_suffix": ".png", "label_suffix": ".png"}
    assert main(["fit", "-c", str(write_recipe(tmp_path, "segmentation", data)), *DRY]) == 0
    out = capsys.readouterr().out
    assert "4 of 5 for training (left out: 1 not ending in .png (data.image_suffix))" in out


@pytest.mark.parametrize(
    ("values", "settings", "warning"),
    [
        ((0, 255), {}, r"1 of the 2 classes occurs in none of the 4 .*: b\. .*255 is unlabelled"),
        ((0, 1), {"class_names": ["a", "b", "c"]}, r"1 of the 3 classes .*: c\. .*count from 0"),
        ((0, 1), {"reduce_zero_label": True}, r"1 of the 2 classes .*: b\. .*set it to false"),
        ((0, 2), {"class_names": ["a", "b", "c"]}, r"1 of the 3 classes .* learned: b\.$"),
        ((0, 1), {"class_names": ["a", "b", "c", "d"]}, r"2 of the 4 classes occur in .*: c, d\."),
        ((0, 7), {"class_values": [0, 7], "class_names": ["a", "b"]}, None),
        (
            (0, 7),
            {"class_values": [0, 7, 8], "class_names": ["a", "b", "c"]},
            r": c\. data.class_values",
        ),
    ],
)
def test_warning_about_classes_that_occur_in_no_label_map(
    values: tuple[int, ...],
    settings: dict[str, Any],
    warning: str | None,
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
) -> None:
    data = write_data(tmp_path / "data", "segmentation") | settings
    for number in range(4):
        save_mask(tmp_path / "data" / "masks" / f"{number}.png", values)
    config = str(write_recipe(tmp_path, "segmentation", data))
    if warning is None:
        assert main(["fit", "-c", config, *DRY]) == 0
        assert not [w for w in recwarn if "cannot be learned" in str(w.message)]
    else:
        with pytest.warns(UserWarning, match=warning):
            assert main(["fit", "-c", config, *DRY]) == 0


def test_label_maps_without_any_class_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data", "segmentation")
    for number in range(4):
        save_mask(tmp_path / "data" / "masks" / f"{number}.png", (255,))
    assert main(["fit", "-c", str(write_recipe(tmp_path, "segmentation", data)), *DRY]) == 2
    assert "every pixel is unlabelled. data.reduce_zero_label" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_warning_about_classes_without_images_or_objects(task: str, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", task) | {"class_names": ["a", "b", "zebra"]}
    with pytest.warns(UserWarning, match="1 of the 3 classes .*cannot be learned: zebra"):
        assert main(["fit", "-c", str(write_recipe(tmp_path, task, data)), *DRY]) == 0


def test_ade20k_class_names_are_refused_for_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data", "segmentation")
    del data["class_names"]
    config = str(write_recipe(tmp_path, "segmentation", data))
    assert main(["fit", "-c", config, *DRY]) == 2
    assert "are not ADE20K's" in capsys.readouterr().err
    assert build(["-c", config, "--data.class_names", "ade20k"]).model.num_classes == 150
    (tmp_path / "data" / "images" / "0.png").rename(tmp_path / "data" / "images" / "ADE_0.png")
    assert build(["-c", config]).model.num_classes == 150
    assert build(["-c", config, "--data.root", "nowhere"]).model.num_classes == 150


def test_label_maps_beside_images_need_only_their_suffix(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", "segmentation")
    for path in (tmp_path / "data" / "masks").iterdir():
        path.rename(tmp_path / "data" / "images" / f"{path.stem}_mask.png")
    data |= {"train_labels": "images", "val_labels": "images", "label_suffix": "_mask.png"}
    assert main(["fit", "-c", str(write_recipe(tmp_path, "segmentation", data)), *DRY]) == 0


def exported(tmp_path: Path, task: str, names: list[str]) -> Path:
    """Folder with a network for classes a and b but other class names."""
    config = str(write_recipe(tmp_path, task, write_data(tmp_path / "data", task)))
    assert main(["fit", "-c", config, "--trainer.limit_val_batches", "0"]) == 0
    last = tmp_path / "runs" / task / "version_0" / "checkpoints" / "last.ckpt"
    folder = tmp_path / "exported"
    given = ["export", "-c", config, "--ckpt_path", str(last), "--format", "safetensors"]
    assert main([*given, "--out", str(folder)]) == 0
    (card,) = folder.rglob("config.json")
    card.write_text(
        card.read_text().replace('"a"', f'"{names[0]}"').replace('"b"', f'"{names[1]}"')
    )
    return card.parent


@pytest.mark.slow
def test_names_of_exported_weights_are_compared_with_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    folder = exported(tmp_path, "classification", ["a", "c"])
    command = ["-c", str(tmp_path / "classification.yaml"), "--model.weights", str(folder)]
    with pytest.warns(
        UserWarning, match="1 have other names, the first is 'c' in the weights and 'b' in the data"
    ):
        assert main(["validate", *command]) == 0
    config = folder / "config.json"
    other = config.read_text().replace('"a"', '"x"').replace('"c"', '"a"').replace('"x"', '"b"')
    config.write_text(other)
    assert main(["validate", *command]) == 2
    assert "in another order" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="was trained for other classes"):
        assert main(["fit", *command, *DRY]) == 0
    config.write_text(other.replace('"b"', '"x"').replace('"a"', '"b"').replace('"x"', '"a"'))
    recwarn.clear()
    assert main(["validate", *command]) == 0
    assert not [w for w in recwarn if "other classes" in str(w.message)]


@pytest.mark.parametrize("task", TASKS)
def test_workers_do_not_receive_the_network(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path / "data", task)
    data |= {"predict_dir": str(tmp_path / "data"), "num_workers": 1}
    cli = build(["-c", str(write_recipe(tmp_path, task, data))])
    for kind in (lightning.LightningModule, lightning.LightningDataModule, lightning.Trainer):
        monkeypatch.setattr(kind, "__reduce_ex__", lambda self, _: pytest.fail(f"sends {self!r}"))
    module = cli.datamodule
    for stage in ("fit", "test", "predict"):
        module.setup(stage)
    for loader in (
        module.train_dataloader(),
        module.val_dataloader(),
        module.test_dataloader(),
        module.predict_dataloader(),
    ):
        assert pickle.dumps(loader.collate_fn)
        assert ForkingPickler.dumps(loader.dataset)  # as PyTorch does for workers
        assert loader.persistent_workers


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("task", TASKS)
def test_workers_can_be_spawned(
    task: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method(method, force=True)
    data = write_data(tmp_path / "data", task) | {"num_workers": 1}
    config = str(write_recipe(tmp_path, task, data))
    shutil.copytree(tmp_path / "data", tmp_path / "holiday")
    (tmp_path / "holiday" / "broken.png").touch()
    try:
        assert main(["fit", "-c", config]) == 0
        assert main(["test", "-c", config, "--ckpt_path", "last"]) == 0
        given = ["--ckpt_path", "last", "--data.predict_dir", str(tmp_path / "holiday")]
        assert main(["predict", "-c", config, *given]) == 2
    finally:
        torch.multiprocessing.set_start_method(usual, force=True)
    assert Image.open(tmp_path / "data" / ("train/a" if task[0] == "c" else "images") / "0.png")


@pytest.mark.parametrize(
    ("options", "is_told"),
    [
        ((), True),
        (("--data.batch_size", "5"), False),
        (("--data.class_balanced", "true"), False),
        (("--trainer.limit_train_batches", "1"), False),
    ],
)
def test_images_of_an_incomplete_step(
    options: tuple[str, ...], is_told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data", "classification", count=5)
    config = write_recipe(tmp_path, "classification", data)
    assert main(["fit", "-c", str(config), *options]) == 0
    line = "1 of 5 are left out of each epoch, others each time; a smaller --data.batch_size uses"
    out = capsys.readouterr().out
    assert "Images:      5 for training, 5 for validation\n" in out
    assert (f" validation\n{'':<13}{line}" in out) == is_told


@pytest.mark.parametrize(("batch", "is_told"), [("2", True), ("1", False)])
def test_batches_of_one_orientation_have_more_steps(
    batch: str, is_told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data", "detection")
    write_annotations(tmp_path / "data" / "labels.json", [(48, 64), *[(64, 48)] * 3])
    save_image(tmp_path / "data" / "images" / "0.png", size=(48, 64))
    config = write_recipe(tmp_path, "detection", data)
    options = ["--data.batch_size", batch, "--trainer.max_epochs", "1"]
    assert main(["fit", "-c", str(config), *options]) == 0
    line = "batches have wide or high images only: 2 come again in each epoch to fill them up, so"
    out = capsys.readouterr().out
    assert "Images:      4 for training, 4 for validation\n" in out
    assert (f" validation\n{'':<13}{line} it has 3 steps\n" in out) == is_told
    assert ("come again" in out) == is_told
