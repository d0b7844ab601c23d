import shutil
import subprocess
import sys

import lightning
import pytest
import torch
from jsonargparse import ArgumentParser
from torchvision.transforms.functional import normalize

from src.data import BaseDataModule, ImageNetDataModule
from src.data.datamodules.imagenet import IMAGENET_MEAN, IMAGENET_STD
from src.data.datamodules.loaders import LoaderOptions
from src.errors import UserError


def data_module(root, stage=None, **options) -> ImageNetDataModule:
    defaults = {"image_size": 16, "batch_size": 4, "num_workers": 0, "auto_augment": None}
    data = ImageNetDataModule(root=str(root), **defaults | options)
    if stage:
        data.setup(stage)
    return data


class Mean(lightning.LightningModule):
    """The smallest thing that Lightning can train."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch):
        return (batch["image"].mean() * self.scale - batch["label"].float().mean()).square()

    def validation_step(self, batch):
        self.training_step(batch)

    def predict_step(self, batch):
        return batch["path"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, enable_model_summary=False, **quiet, **options
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_batches_are_even_and_of_8_bits(toy_imagenet, num_workers):
    data = data_module(toy_imagenet, "fit", batch_size=16, num_workers=num_workers)
    batches = list(data.train_dataloader())
    assert [len(batch["path"]) for batch in batches] == [
        16,
        16,
        16,
    ]  # of 60: the last 12 are left out
    assert batches[0]["image"].shape == (16, 3, 16, 16)
    assert batches[0]["image"].dtype == torch.uint8
    assert batches[0]["label"].dtype == torch.int64
    assert set(batches[0]) == {"image", "label", "path"}


def test_a_set_smaller_than_a_batch_is_not_dropped(toy_imagenet):
    (batch,) = data_module(toy_imagenet, "fit", batch_size=64).train_dataloader()
    assert len(batch["path"]) == 60


def test_evaluation_reads_every_image_once_in_order(toy_imagenet):
    data = data_module(toy_imagenet, "validate", eval_batch_size=7)
    labels = torch.cat([batch["label"] for batch in data.val_dataloader()])
    assert labels.tolist() == [label for label in range(10) for _ in range(3)]
    assert len(next(iter(data.val_dataloader()))["path"]) == 7


def test_classes_are_known_before_setup(toy_imagenet):
    data = data_module(toy_imagenet)
    assert data.num_classes == 10
    assert data.class_names[:3] == ["arrow", "bolt", "circle"]


def test_val_alone_is_enough_for_validation(toy_imagenet, tmp_path):
    shutil.copytree(toy_imagenet / "val", tmp_path / "val")
    data = data_module(tmp_path, "validate")
    assert data.num_classes == 10
    with pytest.raises(UserError, match=r"train does not exist"):
        data_module(tmp_path, "fit")


def test_train_without_val_is_refused(toy_imagenet, tmp_path):
    shutil.copytree(toy_imagenet / "train", tmp_path / "train")
    with pytest.raises(UserError, match=r"val does not exist"):
        data_module(tmp_path, "fit")


def test_a_class_that_only_val_has_is_refused(make_tree):
    root = make_tree({"train": {"a": 1}, "val": {"a": 1, "b": 1}})
    with pytest.raises(UserError, match=r"val/b has no label"):
        data_module(root, "fit")


def test_test_reads_the_split_it_is_told(make_tree):
    root = make_tree({"train": {"a": 1, "b": 1}, "val": {"a": 1}, "holdout": {"b": 3}})
    assert len(data_module(root, "test").test_dataloader().dataset) == 1
    data = data_module(root, "test", test_split="holdout")
    assert next(iter(data.test_dataloader()))["label"].tolist() == [1, 1, 1]


def test_prediction_needs_no_data_set_if_names_are_given(toy_imagenet, tmp_path):
    image = shutil.copy(toy_imagenet / "predict" / "image_00.jpg", tmp_path / "IMG_1")
    data = data_module("nowhere", "predict", predict_dir=str(image), class_names=["a", "b"])
    (batch,) = data.predict_dataloader()
    assert batch["path"] == [str(image)]
    assert "label" not in batch
    assert data.num_classes == 2


def test_prediction_leaves_broken_images_out(toy_imagenet, tmp_path, truncate):
    folder = shutil.copytree(toy_imagenet / "predict", tmp_path / "predict")
    truncate(folder / "image_02.jpg"), truncate(folder / "image_03.jpg")
    options = {"predict_dir": str(folder), "batch_size": 2}
    data = data_module(toy_imagenet, "predict", **options)
    first, second = data.predict_dataloader()
    assert len(first["path"]) == 2
    assert "is_padding" not in first
    assert second["is_padding"]
    assert second["image"].shape == (1, 3, 16, 16)
    assert data.unreadable == [str(folder / f"image_0{number}.jpg") for number in (2, 3)]


def test_prediction_without_images_says_what_to_give(toy_imagenet, tmp_path):
    with pytest.raises(UserError, match=r"--data.predict_dir"):
        data_module(toy_imagenet, "predict")
    with pytest.raises(UserError, match=r"holds no images"):
        data_module(toy_imagenet, "predict", predict_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [
        ("image_size", 0, "1 to 8192 pixels"),
        ("batch_size", 0, "at least 1"),
        ("eval_batch_size", 0, "at least 1"),
        ("num_workers", -1, "0 .no extra process. or more"),
        ("crop_pct", 1.5, "from 0.1 to 1"),
        ("crop_scale", (0.5, 0.2), "the smaller one first"),
        ("crop_ratio", (0.0, 1.0), "two positive ratios"),
        ("hflip", 2.0, "probability"),
        ("random_erasing", -0.1, "probability"),
        ("std", (0.0, 1.0, 1.0), "three positive"),
        ("broken_images", "ignore", '"error" or "skip"'),
    ],
)
def test_values_out_of_range_are_refused(option, value, accepted):
    with pytest.raises(UserError, match=rf"data\.{option} accepts .*{accepted}.*got"):
        ImageNetDataModule(**{option: value})


def test_lightning_reports_skipped_images_once(toy_imagenet, tmp_path, truncate, caplog):
    root = shutil.copytree(toy_imagenet, tmp_path / "set")
    truncate(root / "train" / "star" / "star_0003.jpg")
    data = data_module(root, num_workers=1, broken_images="skip", batch_size=20)
    trainer(tmp_path, max_epochs=3).fit(Mean(), datamodule=data)
    reports = [text for text in caplog.messages if "cannot be read" in text]
    assert len(reports) == 1
    assert reports[0].startswith("1 of 60 train images cannot be read and were skipped: ")
    assert reports[0].endswith("star_0003.jpg")


def test_lightning_raises_the_sentence_of_a_worker(toy_imagenet, tmp_path, truncate):
    root = shutil.copytree(toy_imagenet, tmp_path / "set")
    truncate(root / "train" / "star" / "star_0003.jpg")
    data = data_module(root, num_workers=1, batch_size=60)
    with pytest.raises(UserError, match=r"^The image .*star_0003.jpg cannot be read"):
        trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0).fit(Mean(), datamodule=data)


def test_lightning_predicts_a_folder(toy_imagenet, tmp_path):
    data = data_module(toy_imagenet, predict_dir=str(toy_imagenet / "predict"))
    (paths,) = trainer(tmp_path).predict(Mean(), datamodule=data)
    assert len(paths) == 4


def test_seeded_workers_repeat_the_augmentation(toy_imagenet):
    def first_batch(seed):
        lightning.seed_everything(seed, workers=True, verbose=False)
        data = data_module(toy_imagenet, "fit", num_workers=1, auto_augment="rand-m9-mstd0.5-inc1")
        return next(iter(data.train_dataloader()))["image"]

    torch.testing.assert_close(first_batch(1), first_batch(1), rtol=0, atol=0)
    assert not torch.equal(first_batch(1), first_batch(2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_argument_can_be_given_on_the_command_line(toy_imagenet):
    parser = ArgumentParser()
    parser.add_subclass_arguments(BaseDataModule, "data")
    arguments = ["ImageNetDataModule", f"root={toy_imagenet}", "image_size=32", "auto_augment=null"]
    arguments += ["crop_scale=[0.5,1]", "class_names=imagenet-1k", "broken_images=skip"]
    arguments += ["reduced_decoding=always", "loading.prefetch_factor=3"]
    options = [f"--data={arguments[0]}", *(f"--data.{pair}" for pair in arguments[1:])]
    data = parser.instantiate_classes(parser.parse_args(options)).data
    assert isinstance(data, ImageNetDataModule)
    assert data.image_size == 32
    assert data.loading.prefetch_factor == 3
    with pytest.raises(UserError, match=r"class folders"):  # toy folders are not ImageNet's
        _ = data.class_names


def test_the_commands_need_not_wait_for_lightning():
    code = (
        "import src.cli.commands.prepare, src.cli.commands.verify, sys; print(sorted(sys.modules))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    for heavy in ("torch", "lightning", "timm"):
        assert f"'{heavy}'" not in loaded.stdout


class Keep(Mean):
    """Keeps the images that arrive on the device."""

    def __init__(self):
        super().__init__()
        self.trained, self.validated = [], []

    def training_step(self, batch):
        self.trained.append(batch["image"])
        return self.scale.sum()

    def validation_step(self, batch):
        self.validated.append(batch["image"])


def kept(root, tmp_path, precision="32-true", **options):
    """What a step of training and of validation gets, and the batches of the loaders."""
    lightning.seed_everything(0, workers=True, verbose=False)
    data = data_module(root, batch_size=60, crop_scale=(1, 1), crop_ratio=(1, 1), **options)
    task = Keep()
    options = {"max_epochs": 1, "num_sanity_val_steps": 0, "precision": precision}
    trainer(tmp_path, **options).fit(task, datamodule=data)
    return task, data


def test_images_are_normalised_on_the_device(toy_imagenet, tmp_path):
    task, data = kept(toy_imagenet, tmp_path, random_erasing=0.0)
    (image,) = task.validated
    (batch,) = data.val_dataloader()
    expected = normalize(batch["image"] / 255, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(image, expected)
    torch.testing.assert_close(data.normalise(batch)["image"], image, rtol=0, atol=0)
    assert image.is_contiguous()


def test_rectangles_are_erased_in_training_only(toy_imagenet, tmp_path):
    erased = {"random_erasing": 1.0, "erasing_mode": "const"}
    task, _ = kept(toy_imagenet, tmp_path, **erased)
    assert all((image == 0).all(0).any() for image in task.trained[0])
    assert not any((image == 0).all(0).any() for image in task.validated[0])


def test_images_have_the_precision_of_the_run(toy_imagenet, tmp_path):
    task, _ = kept(toy_imagenet, tmp_path, precision="bf16-true")
    assert task.trained[0].dtype == task.validated[0].dtype == torch.bfloat16


def test_loader_options_reach_the_loader(toy_imagenet):
    options = LoaderOptions(prefetch_factor=7, pin_memory=False, persistent_workers=False)
    data = data_module(toy_imagenet, "validate", num_workers=1, loading=options)
    loader = data.val_dataloader()
    assert loader.prefetch_factor == 7
    assert not loader.pin_memory
    assert not loader.persistent_workers
    usual = data_module(toy_imagenet, "validate", num_workers=1).val_dataloader()
    assert usual.persistent_workers
    assert usual.pin_memory == torch.cuda.is_available()
    with pytest.raises(UserError, match=r"prefetch_factor accepts .* at least 1, got 0"):
        LoaderOptions(prefetch_factor=0)
