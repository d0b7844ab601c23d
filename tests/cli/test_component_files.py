"""Configuration files that are added to a recipe do what their comments say."""

from pathlib import Path

import pytest
import yaml

from src.callbacks import EMA
from src.cli import build, main
from src.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe_file(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(trained / "tiny.yaml")


def added(recipe_file: str, name: str, *arguments: str) -> list[str]:
    return ["-c", recipe_file, "-c", str(ROOT / "configs" / name), *arguments]


@pytest.mark.parametrize(
    ("name", "kind"), [("throughput", "Throughput"), ("early_stopping", "TaskEarlyStopping")]
)
def test_callbacks_are_appended(recipe_file: str, name: str, kind: str) -> None:
    cli = build(added(recipe_file, f"callbacks/{name}.yaml"))
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert kind in names
    assert "EMA" in names  # of the recipe


def test_ema_for_a_recipe_without_it(recipe_file: str, tmp_path: Path) -> None:
    plain = yaml.safe_load(Path(recipe_file).read_text())
    del plain["trainer"]["callbacks"]
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(plain))
    cli = build(added(str(tmp_path / "plain.yaml"), "callbacks/ema.yaml"))
    (ema,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, EMA))
    assert ema.decay == 0.9999
    with pytest.raises(UserError, match="more than one stateful callback of type `EMA`"):
        build(added(recipe_file, "callbacks/ema.yaml"))


def test_default_trainer(recipe_file: str) -> None:
    cli = build(added(recipe_file, "trainer/default.yaml"))
    assert cli.trainer.gradient_clip_val == 5.0
    assert cli.trainer.precision == "32-true"
    assert cli.trainer.max_epochs == 2  # of the recipe


@pytest.mark.parametrize("name", ["ddp", "mixed"])
def test_gpu_trainer_files_parse(recipe_file: str, name: str) -> None:
    cpu = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    cli = build(added(recipe_file, f"trainer/{name}.yaml", *cpu, "--trainer.precision", "32"))
    strategy = type(cli.trainer.strategy).__name__
    assert strategy == {"ddp": "DDPStrategy", "mixed": "SingleDeviceStrategy"}[name]


def test_overfit_learns_one_batch(recipe_file: str) -> None:
    off = ["mixup_alpha", "cutmix_alpha", "label_smoothing", "network.drop_path_rate"]
    settings = [part for name in off for part in (f"--model.{name}", "0")]
    settings += ["--data.auto_augment", "null", "--data.random_erasing", "0"]
    settings += ["--model.optimizer.lr", "0.3", "--trainer.max_epochs", "25"]
    cli = build(added(recipe_file, "debug/overfit.yaml", *settings))
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.trainer.callback_metrics["train/loss_epoch"] < 0.2


def test_limit_profile_and_anomaly(recipe_file: str, tmp_path: Path) -> None:
    limit = ["--trainer.limit_train_batches", "1"]
    assert main(["fit", *added(recipe_file, "debug/profile.yaml"), *limit]) == 0
    name = f"{Path(recipe_file).stem}-profile"
    assert (tmp_path / "runs" / name / "version_0" / "fit-profile.txt").is_file()
    cli = build(added(recipe_file, "debug/limit.yaml"))
    assert (cli.trainer.max_epochs, cli.trainer.limit_train_batches) == (3, 0.05)
    assert build(added(recipe_file, "debug/anomaly.yaml")).trainer._detect_anomaly
    assert build(added(recipe_file, "debug/fast.yaml")).trainer.fast_dev_run
