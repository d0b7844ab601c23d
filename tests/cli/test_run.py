"""Complete workflow: fit, run folder, replay, validate, test, predict."""

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from src.cli import main
from src.models import InternImage
from src.models.weights import to_official

ROOT = Path(__file__).resolve().parents[2]


def columns(path: Path) -> dict[str, list[float]]:
    """Values of each column of a metrics.csv, without empty cells."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def run(trained: Path, *arguments: str) -> int:
    runs = ["--trainer.default_root_dir", str(trained / "runs")]
    return main([arguments[0], *arguments[1:], *runs])


def test_fit_writes_the_run_folder(trained: Path) -> None:
    folder = trained / "runs" / "tiny" / "version_0"
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "env.txt", "metrics.csv", "checkpoints"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert "dcnv3 on cpu" in (folder / "env.txt").read_text()
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert len(list((folder / "checkpoints").glob("best-epoch=*.ckpt"))) == 1


def test_metrics_of_ema_and_raw_weights_are_logged(trained: Path) -> None:
    metrics = columns(trained / "runs" / "tiny" / "version_0" / "metrics.csv")
    for name in ("loss", "top1"):
        assert len(metrics[f"val/{name}"]) == len(metrics[f"val/{name}_raw"]) == 2
    assert metrics["val/loss"] != metrics["val/loss_raw"]
    assert "val/top5" not in metrics  # it would be 1 with three classes
    assert len(metrics["train/loss"]) >= 2
    # Two groups, both with the scaled peak learning rate times the schedule.
    assert metrics["lr-AdamW/decay"] == metrics["lr-AdamW/no_decay"]


def test_learning_rate_is_scaled_by_the_batch(trained: Path) -> None:
    checkpoint = load(trained / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt")
    group = checkpoint["optimizer_states"][0]["param_groups"][0]
    assert group["initial_lr"] == pytest.approx(0.05 * 8 / 512)


def test_checkpoint_opens_without_running_code(trained: Path) -> None:
    checkpoint = load(trained / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt")
    assert checkpoint["current_model_state"].keys() == checkpoint["state_dict"].keys()
    assert checkpoint["hyper_parameters"]["num_classes"] == 3


def test_saved_config_replays_the_run(trained: Path) -> None:
    first = trained / "runs" / "tiny" / "version_0"
    assert run(trained, "fit", "-c", str(first / "config.yaml")) == 0
    second = max((trained / "runs" / "tiny").glob("version_*"))
    assert second != first
    assert columns(second / "metrics.csv") == columns(first / "metrics.csv")
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (first, second)]
    assert configs[0] == configs[1]
    states = [load(f / "checkpoints" / "last.ckpt")["state_dict"] for f in (first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(("command", "stage"), [("validate", "val"), ("test", "test")])
def test_evaluation_uses_the_ema_weights(
    trained: Path, capsys: pytest.CaptureFixture[str], command: str, stage: str
) -> None:
    folder = trained / "runs" / "tiny" / "version_0"
    checkpoint = folder / "checkpoints" / "last.ckpt"
    config = str(folder / "config.yaml")
    assert run(trained, command, "-c", config, "--ckpt_path", str(checkpoint)) == 0
    output = capsys.readouterr()
    assert "Results of the" in output.out
    assert str(checkpoint) in output.err + output.out
    metrics = columns(trained / "runs" / "tiny" / f"{command}_0" / "metrics.csv")
    fit = columns(folder / "metrics.csv")
    assert metrics[f"{stage}/loss"] == pytest.approx([fit["val/loss"][-1]], rel=1e-6)
    assert metrics[f"{stage}/top1"] == [fit["val/top1"][-1]]


def test_warning_if_evaluated_weights_have_other_classes(
    trained: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    network = InternImage(num_classes=5, channels=8, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8))
    torch.save({"model": to_official(network)}, tmp_path / "five.pth")
    given = ["-c", str(trained / "tiny.yaml"), "--model.weights", str(tmp_path / "five.pth")]
    assert run(trained, "validate", *given) == 0
    assert any("the results are meaningless" in str(warning.message) for warning in recwarn)


def test_predict_writes_table_and_images(
    trained: Path, images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = trained / "runs" / "tiny" / "version_0" / "config.yaml"
    photos = str(images / "val")
    arguments = ["-c", str(config), "--ckpt_path", "last", "--data.predict_dir", photos]
    assert run(trained, "predict", *arguments, "--predictions.max_images", "5") == 0
    outputs = (trained / "runs" / "tiny").glob("predict_*")  # other tests predict with this run
    folder = max(outputs, key=lambda path: int(path.name.removeprefix("predict_")))
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert set(rows[0]) == {"path", *(f"{k}_{i}" for k in ("class", "prob") for i in (1, 2, 3))}
    for row in rows:
        assert Path(row["path"]).is_file()
        assert {row[f"class_{i}"] for i in (1, 2, 3)} == {"blue", "green", "red"}
        probabilities = [float(row[f"prob_{i}"]) for i in (1, 2, 3)]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert probabilities == sorted(probabilities, reverse=True)
    drawn = sorted((folder / "images").rglob("*.png"))
    assert len(drawn) == 5
    written = {"config.yaml", "env.txt", "predictions.csv", "images"}
    assert {path.name for path in folder.iterdir()} == written
    assert "Seed set" not in capfd.readouterr().err
    with Image.open(drawn[0]) as image:
        assert image.width >= 360


def test_fast_dev_run_leaves_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "-c", str(trained / "tiny.yaml"), "--trainer.fast_dev_run", "1"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_flags_turn_default_callbacks_off(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    off = ["logger", "enable_checkpointing", "enable_progress_bar"]
    flags = [part for name in off for part in (f"--trainer.{name}", "false")]
    arguments = ["-c", str(trained / "tiny.yaml"), "--name", "bare", "--trainer.max_epochs", "1"]
    assert main(["fit", *arguments, *flags, "--trainer.limit_train_batches", "1"]) == 0
    files = {
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
    }
    names = {"config.yaml", "env.txt", "classes_val.csv", "confusion_val.csv"}
    assert files == {f"runs/bare/version_0/{name}" for name in names}


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_gradients_of_a_fused_optimizer_are_clipped(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model.optimizer.fused", "true", "--trainer.gradient_clip_val", "0.1"]
    flags += ["--trainer.precision", precision, "--trainer.max_epochs", "1"]
    assert main(["fit", "-c", str(trained / "tiny.yaml"), "--name", "fused", *flags]) == 0


def test_short_and_dotted_settings(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {
        "--model.network.drop_path_rate": "0.3",
        "--model.init_args.label_smoothing": "0.2",
        "--model.layer_decay": "0.5",
        "--model.mixup_alpha": "0",
        "--model.cutmix_alpha": "0",
        "--model.lr_scheduler": "torch.optim.lr_scheduler.CosineAnnealingLR",
        "--model.lr_scheduler.T_max": "4",
        "--model.reference_batch_size": "null",
        "--data.batch_size": "12",
        "--trainer.max_epochs": "1",
        "--checkpoint.save_top_k": "0",
        "--seed_everything": "7",
    }
    flat = [part for item in settings.items() for part in item]
    assert main(["fit", "-c", str(trained / "tiny.yaml"), *flat]) == 0
    checkpoints = tmp_path / "runs" / "tiny" / "version_0" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["last.ckpt"]
    checkpoint = load(checkpoints / "last.ckpt")
    settings = checkpoint["hyper_parameters"]
    assert settings["network"]["init_args"]["drop_path_rate"] == 0.3
    assert settings["label_smoothing"] == 0.2
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    assert {group["lr_scale"] for group in groups} == {1.0, 0.5, 0.25, 0.125}
    assert groups[0]["initial_lr"] == 0.05
    assert checkpoint["lr_schedulers"][0]["T_max"] == 4


@pytest.mark.slow
def test_training_on_two_ranks(trained: Path, tmp_path: Path) -> None:
    flags = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "1"]
    command = [sys.executable, "-m", "src", "fit", "-c", str(trained / "tiny.yaml"), *flags]
    command += ["--trainer.default_root_dir", str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "tiny"
    assert [path.name for path in folder.iterdir()] == ["version_0"]
    checkpoint = load(folder / "version_0" / "checkpoints" / "last.ckpt")
    # 24 images, 2 ranks with batches of 8: one full batch per rank; lr for 16 images.
    assert checkpoint["global_step"] == 1
    group = checkpoint["optimizer_states"][0]["param_groups"][0]
    assert group["initial_lr"] == pytest.approx(0.05 * 16 / 512)
    assert done.stdout.count("epoch 0/0") == 1
    assert "sync_dist" not in done.stderr  # Lightning's warning about a metric of a single rank


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.mark.parametrize(("accumulated", "is_shown"), [(2, True), (1, False)])
def test_a_scaled_learning_rate_is_printed(
    accumulated: int,
    is_shown: bool,
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    rate = ["--model.optimizer.lr", "0.01", "--model.reference_batch_size", "4"]
    batch = ["--data.batch_size=4", f"--trainer.accumulate_grad_batches={accumulated}"]
    trial = ["fit", "-c", str(write_recipe(tmp_path)), "--trainer.fast_dev_run", "1"]
    assert main([*trial, *rate, *batch]) == 0
    line = "Rate:        0.02 for 8 images per step (model.optimizer.lr is 0.01 for 4)\n"
    assert (line in (output := capsys.readouterr().out)) is is_shown
    assert ("Rate:" in output) is is_shown
