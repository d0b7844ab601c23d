"""User errors: one line on stderr, exit code 2, and no files left behind."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src.cli import main
from src.config_files import CONFIGS


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("--model.init_args.typo", "1", "ClassificationTask has no setting 'model.typo'"),
        ("--model.label_smothing", "1", "Did you mean 'model.label_smoothing'?"),
        (
            "--model.networ.variant",
            "internimage_nano",
            "There is no option --model.networ.variant. Did you mean --model.network.variant?",
        ),
        (
            "--model.optimzer.lr",
            "0.1",
            "Did you mean --model.optimizer.lr?",
        ),
        ("--model.mixup_alpha.x", "1", "'model.mixup_alpha.x'; model.mixup_alpha is a number."),
        ("--data.foo.bar", "1", "ImageNetDataModule has no setting 'data.foo'. Its settings are"),
        ("--model.network.chanels", "4", "InternImage has no setting 'model.network.chanels'."),
        ("--model.network.drop_path_rate", "x", "model.network.drop_path_rate must be a number"),
        ("--model.network", "internimage_t", "use --model.network.variant internimage_t."),
        (
            "--model.lr",
            "1",
            "ClassificationTask has no setting 'model.lr'. Use --model.optimizer.lr",
        ),
        ("--model.optimizer", "adamw", "there is no class 'adamw'. Did you mean 'AdamW'?"),
        ("--model.weights", "internimage_t_1k", "Published names like it: internimage_t_1k_224"),
        ("--data.num_workers", "-1", "data.num_workers accepts 0 (no extra process) or more"),
        ("--trainer.precision", "fp16", "must be 32-true, bf16-mixed, 16-mixed, bf16-true"),
        ("--trainer.strategy", "fsdp", "--trainer.strategy fsdp2 also runs on CPUs."),
        ("--trainer.logger", "wandb", "Did you mean 'WandbLogger'?"),
        ("--model.network", "InternImag", "no class 'InternImag'. Did you mean 'InternImage'?"),
        ("--model.optimizer.lrr", "1", "AdamW has no setting 'model.optimizer.lrr'."),
        ("--model.lr_scheduler", "Cosine", "model.lr_scheduler: there is no class 'Cosine'."),
        ("--model.num_classes", "7", "model.num_classes cannot be set"),
        ("--model", "ClasificationTask", "Did you mean 'ClassificationTask'?"),
        (
            "--data.rot",
            "x",
            "ImageNetDataModule has no setting 'data.rot'. Did you mean 'data.root'?",
        ),
        ("--data.xyz", "x", "has no setting 'data.xyz'. Its settings are auto_augment, batch_size"),
        ("--data.tta", "true", "it is a setting of ADE20KDataModule"),
        ("--data.batch_size", "x", "data.batch_size must be an integer, got 'x'."),
        ("--data.batch_size", "0", "data.batch_size accepts an integer of at least 1, got 0."),
        ("--data.crop_scale", "3", "data.crop_scale must be [a number, a number], got '3'."),
        ("--data.root", "nowhere", "The data folder nowhere does not exist; expected"),
        ("--trainer.max_epocs", "1", "Did you mean --trainer.max_epochs?"),
        ("--trainer.max_epochs", "x", "trainer.max_epochs must be an integer or null, got 'x'."),
        ("--trainer.max_epochs", "", "--trainer.max_epochs needs a value."),
        ("--trainr.bar", "1", "There is no setting 'trainr.bar'. See --help."),
        ("--trainer.gpus", "1", "There is no option --trainer.gpus. Use --trainer.accelerator gpu"),
        ("--trainer.max_epochs", "-1", "The length of training is unknown"),
        ("--trainer.accelerator", "gpu", "PyTorch sees no GPU; use --trainer.accelerator auto."),
        ("--trainer.accelerator", "cuda", "PyTorch sees no GPU; use --trainer.accelerator auto."),
        ("--trainer.callbacks+", "EarlyStoping", "Did you mean 'EarlyStopping'?"),
        ("--trainer.callbacks+", "EarlyStopping", "EarlyStopping needs a value for monitor."),
        (
            "--trainr.max_epochs",
            "1",
            "Did you mean --trainer.max_epochs?",
        ),
        ("--lr", "0.1", "There is no option --lr. Use --model.optimizer.lr, the rate for a batch"),
        ("--epochs", "3", "There is no option --epochs. Use --trainer.max_epochs."),
        ("--batch-size", "8", "There is no option --batch-size. Use --data.batch_size."),
        ("-b", "8", "There is no option -b. Use --data.batch_size."),
        ("--image_size", "64", "Use --data.image_size (classification), --data.train_scales and"),
        ("--mixup_prob", "1", "Did you mean --model.mixup_prob?"),
        ("--model.network", "configs/model/internimage_q.yaml", "There is no file configs/model/"),
        ("--trainer.gradient_clip_val", "-1", "trainer.gradient_clip_val must be 0 or more"),
        ("--trainer.accumulate_grad_batches", "0", "accumulate_grad_batches must be at least 1"),
        ("--trainer.max_steps", "0", "There is nothing to train on"),
        ("--trainer.max_epochs", "0", "nothing to train on: trainer.max_epochs must not be 0."),
        ("--trainer.max-epochs", "2", "Use --trainer.max_epochs."),
        ("--data.batch-size", "8", "There is no option --data.batch-size. Did you mean --data."),
        ("--trainer.devices", "2000000", "trainer.devices is 2000000, the number of processes on"),
        ("--model.optimizer.lr", "fast", "model.optimizer.lr: expected a number, got 'fast'."),
        ("--trainer.limit_train_batches", "0", "There is nothing to train on"),
        ("--trainer.val_check_interval", "1000", "`val_check_interval` (1000) must be less"),
        (
            "--trainer.default_root_dir",
            "tiny.yaml",
            "Cannot create the run folder tiny.yaml/tiny/version_0",
        ),
        ("--seed_everything", "-5", "Invalid seed_everything: -5 is not in bounds"),
        ("--model.optimizer.lr", "-1", "Cannot create model.optimizer with these settings"),
        ("--model.optimizer", "torch.optim.SparseAdam", "SparseAdam is not supported"),
        ("--model.optimizer", "torch.optim.LBFGS", "LBFGS doesn't support per-parameter options"),
        ("--model.lr_interval", "batch", "model.lr_interval must be 'epoch' or 'step'"),
        ("--model.network.in_chans", "1", "in_chans of the network is 1, but images are read"),
        ("--model.network.in_chans", "0", "in_chans must be at least 1"),
        ("--checkpoint.mode", "up", "checkpoint.mode must be one of 'max', 'min' or null"),
        ("--ckpt_path", "lats", "There is no checkpoint lats. Did you mean 'last'?"),
        ("--ckpt_path", "gone.ckpt", "The checkpoint gone.ckpt does not exist"),
        ("--ckpt_path", "last", "There is no 'last' checkpoint in runs/tiny/version_*/checkpoints"),
    ],
)
def test_wrong_settings(
    folder: Path, error_of: Callable[..., str], setting: str, value: str, message: str
) -> None:
    if setting in ("--trainer.accelerator", "--trainer.strategy") and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert message in error_of("fit", "-c", "tiny.yaml", f"{setting}={value}")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "model.network.variant",
            "MaskRCNN has no setting 'model.network.variant'."
            " Use --model.network.backbone.variant.",
        ),
        ("model.network.backbne.variant", "Did you mean --model.network.backbone.variant?"),
        (
            "model.network.backbone.varian",
            "InternImageBackbone has no setting 'model.network.backbone.varian'."
            " Did you mean 'model.network.backbone.variant'?",
        ),
    ],
)
def test_misspelt_settings_within_a_detector(
    folder: Path, error_of: Callable[..., str], setting: str, message: str
) -> None:
    recipe = CONFIGS / "toy" / "detection.yaml"
    assert message in error_of("fit", "-c", str(recipe), f"--{setting}", "internimage_nano")


def test_options_of_other_libraries_are_answered_at_once(
    folder: Path, error_of: Callable[..., str]
) -> None:
    text = error_of("fit", "-c", "tiny.yaml", "--lr", "0.1", "--epochs", "3", "--lr", "0.2")
    assert "There is no option --lr. Use --model.optimizer.lr, the rate for a batch of" in text
    assert "scaled with the batch size. There is no option --epochs. Use --trainer.max" in text
    assert text.count("--lr.") == 1


def test_a_learning_rate_of_zero(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"The learning rate is 0, so nothing is learned\."):
        assert main(["fit", "-c", "tiny.yaml", "--model.optimizer.lr", "0"]) == 0


def test_16_mixed_on_a_cpu(folder: Path) -> None:
    with pytest.warns(UserWarning, match="CPUs do not have the precision 16-mixed; bf16-mixed is"):
        assert main(["fit", "-c", "tiny.yaml", "--trainer.precision", "16-mixed"]) == 0
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*16-mixed")
        assert main(["validate", "--name", "tiny", "--trainer.precision", "bf16-mixed"]) == 0


def test_settings_without_a_recipe(folder: Path, error_of: Callable[..., str]) -> None:
    text = error_of("predict", "--data.predict_dir", "photos")
    assert text == (
        "--data.* settings change those of a recipe or a run, and none is given. Give a recipe with"
        " --config configs/<recipe>.yaml, or a trained run with --name RUN or --ckpt_path FILE."
    )
    text = error_of("predict", "-c", "tiny.yaml", "--data", "ImageNetDatamodul")
    assert "Did you mean 'ImageNetDataModule'? Expected a class name or an import path." in text
    Path("photos").mkdir()
    text = error_of("predict", "-c", "tiny.yaml", "--data", "photos")
    assert text.endswith("or --data.predict_dir photos for images to predict.")


def test_the_description_of_a_yolo_dataset(folder: Path, error_of: Callable[..., str]) -> None:
    Path("data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    text = error_of("fit", "--data", "data.yaml")
    assert "`python -m src prepare from-yolo .` first" in text


def test_a_suggestion_replaces_the_list_of_settings(
    folder: Path, error_of: Callable[..., str]
) -> None:
    text = error_of("predict", "-c", "tiny.yaml", "--data.predict", "images")
    assert text.endswith("no setting 'data.predict'. Did you mean 'data.predict_dir'?")


def test_options_without_a_value(folder: Path, error_of: Callable[..., str]) -> None:
    text = error_of("fit", "-c", "tiny.yaml", "--ckpt_path")
    assert text == "--ckpt_path needs last, best or a file."
    text = error_of("fit", "-c", "tiny.yaml", "--data.batch_size", "--trainer.max_epochs", "1")
    assert text == "--data.batch_size needs a value."


def test_unsuitable_callbacks(folder: Path, error_of: Callable[..., str]) -> None:
    for arguments in (
        ["--trainer.callbacks+=BackboneFinetuning"],
        ["--trainer.callbacks+", "BackboneFinetuning"],
    ):
        text = error_of("fit", "-c", "tiny.yaml", *arguments)
        assert "BackboneFinetuning is not supported" in text


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data.batch_size=3", "options start with two hyphens: --data.batch_size=3."),
        ("epochs=3", "options start with two hyphens: --trainer.max_epochs."),
        ("images", "use --data.predict_dir images for images to predict"),
        ("nowhere", "every value follows an option"),
    ],
)
def test_arguments_without_an_option(
    folder: Path, error_of: Callable[..., str], argument: str, message: str
) -> None:
    Path("images").mkdir()
    assert message in error_of("fit", "-c", "tiny.yaml", argument)


@pytest.mark.parametrize("command", ["predict", "plan"])
def test_arguments_with_spaces_are_shown_whole(
    folder: Path, error_of: Callable[..., str], command: str
) -> None:
    photos = Path("my data/new photos")
    photos.mkdir(parents=True)
    text = error_of(command, "-c", "tiny.yaml", str(photos))
    assert text.startswith(f"Unexpected argument '{photos}'; use --data.predict_dir '{photos}' for")
    assert "use --config 'my data/a b.yaml' for" in error_of(command, "my data/a b.yaml")


def test_commands_of_other_libraries(folder: Path, error_of: Callable[..., str]) -> None:
    assert error_of("train") == "There is no command 'train'; use 'fit'."
    assert error_of("trian").endswith("Did you mean 'fit'?")
    assert error_of("--versoin").endswith("Did you mean '--version'?")
    assert error_of("valdate").endswith("Did you mean 'validate'?")
    assert error_of("detect") == "There is no command 'detect'; use 'predict'."
    assert error_of("env", "--foo") == "env takes no arguments, got '--foo'."


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("export --name tiny --format torchscript", "export --format: expected onnx, pt2, aoti or"),
        ("plan -c tiny.yaml --gpus two", "--gpus: expected an integer, got 'two'."),
        ("plan -c tiny.yaml --gpus", "--gpus needs a value."),
        ("profile internimage_t", "profile needs --model. See python -m src profile --help."),
        ("prepare", "prepare needs DATA, one of from-folder, from-coco, from-yolo, from-masks, "),
        ("prepare", ", toy. See python -m src prepare --help."),
        ("prepare runs", "prepare expects from-folder, from-coco,"),
        (
            "prepare from-folder",
            "prepare from-folder needs FOLDER, a folder of <class>/*, or of train/<class>/* and"
            " val/<class>/*. See python -m src prepare from-folder --help.",
        ),
        ("prepare from-coco", "from-coco needs ANNOTATIONS, a COCO file, or a folder with one for"),
        (
            "prepare from-yolo",
            "from-yolo needs DATASET, a data.yaml, or the folder of the dataset.",
        ),
        ("prepare coco-subset", "prepare coco-subset needs --annotations and --out. See python -m"),
        ("prepare index-tars", "prepare index-tars needs TARS and --out. See python -m src prep"),
        ("consolidate", "consolidate needs CHECKPOINT, a checkpoint folder (or file). See python"),
        (
            "export runs/tiny/version_0",
            "Unexpected argument 'runs/tiny/version_0'; use --ckpt_path",
        ),
        (
            "fit -c runs/tiny/version_0/checkpoints/last.ckpt",
            "last.ckpt is not a settings file; use",
        ),
        (
            "prepare from-masks",
            "needs a folder with images and label maps, or --images and --masks.",
        ),
        ("prepare from-folders photos", "got 'from-folders'. Did you mean 'from-folder'?"),
        (
            "verify imagenet --rot x",
            "verify imagenet does not accept '--rot x'. Did you mean --root? See python -m src "
            "verify imagenet --help.",
        ),
        ("prepare from-coco a.json --image=x", "'--image=x'. Did you mean --images? See python -m"),
        ("profile --model internimage_t x", "profile does not accept 'x'. See python -m src prof"),
        (
            "plan",
            "plan needs a recipe or a run. Give a recipe with --config configs/<recipe>.yaml, or",
        ),
    ],
)
def test_wrong_arguments_of_tools(
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    error_of: Callable[..., str],
    command: str,
    message: str,
) -> None:
    monkeypatch.chdir(trained)
    assert message in error_of(*command.split())


def test_wrong_commands(folder: Path, error_of: Callable[..., str]) -> None:
    assert "Unknown command 'fti'" in error_of("fti")
    assert error_of("fit") == (
        "fit needs a recipe. Add --config configs/<recipe>.yaml, or --ckpt_path FILE to continue a"
        " run."
    )
    assert "use --config some/tiny.yaml" in error_of("fit", "some/tiny.yaml")


def test_a_single_image_per_step(folder: Path, error_of: Callable[..., str]) -> None:
    flags = ["--data.batch_size", "1", "--model.mixup_alpha", "0", "--model.cutmix_alpha", "0"]
    assert "Batch norm cannot train" in error_of("fit", "-c", "tiny.yaml", *flags)


def test_a_broken_image_is_named(folder: Path, error_of: Callable[..., str], images: Path) -> None:
    for image in images.rglob("*.png"):
        copy = folder / "data" / image.relative_to(images)
        copy.parent.mkdir(parents=True, exist_ok=True)
        content = image.read_bytes()
        copy.write_bytes(content[:100] if "red_2" in copy.name else content)
    for workers in ("0", "1"):
        flags = ["--data.root", "data", "--data.num_workers", workers]
        text = error_of("fit", "-c", "tiny.yaml", *flags)
        assert "red_2.png" in text
        assert "\n" not in text


def test_no_images_to_predict(folder: Path, error_of: Callable[..., str]) -> None:
    assert "--data.predict_dir" in error_of("predict", "-c", "tiny.yaml")


def test_programming_errors_keep_their_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from src.tasks import ClassificationTask

    def broken(*_: object) -> None:
        json.loads("{")  # a ValueError, but not raised by this project

    monkeypatch.setattr(ClassificationTask, "training_step", broken)
    assert main(["fit", "-c", "tiny.yaml"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert not Path("runs").exists()  # there was no step, so nothing is kept


def test_traceback_on_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INTERNIMAGE_TRACEBACK", "1")
    assert main(["fit", "-c", "nowhere.yaml"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("opacity", ["5", "-1", "nan"])
def test_opacity_of_overlays(opacity: str, error_of: Callable[..., str]) -> None:
    recipe = CONFIGS / "segmentation" / "upernet_nano_camvid.yaml"
    error = error_of("predict", "--config", str(recipe), "--label_maps.opacity", opacity)
    assert re.match(
        r"label_maps\.opacity(: expected a number from 0 to 1| must be a number)", error
    )


@pytest.mark.parametrize(
    "schedule",
    [
        '{"class_path": "WarmupCosine", "init_args": {"warmup_epochs": 1}}',
        '{"class_path": "WarmupPoly", "init_args": {"warmup_steps": 20}}',
        '{"class_path": "WarmupMultiStep", "init_args": {"milestones": [1], "warmup_steps": 20}}',
    ],
)
def test_a_trial_shorter_than_the_warmup_names_the_option(folder: Path, schedule: str) -> None:
    trial = ["fit", "-c", "tiny.yaml", "--trainer.max_steps", "1", "--model.lr_scheduler", schedule]
    with pytest.warns(UserWarning, match="The warm-up of .* steps is not shorter") as caught:
        assert main(trial) == 0
    text = next(str(item.message) for item in caught if "warm-up" in str(item.message))
    assert "the learning rate never reaches its full value" in text
    option = text.partition("For a short trial add ")[2].rstrip(".").split()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The warm-up")
        assert main([*trial, *option]) == 0
