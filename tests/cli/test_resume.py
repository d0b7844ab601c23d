"""Resumed runs end like uninterrupted ones. An epoch has three batches."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from src.cli import main
from src.tasks import ClassificationTask

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = ("--trainer.max_epochs", "4")
STEPS = ("--trainer.max_epochs", "-1", "--trainer.max_steps", "12")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def straight(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of an uninterrupted run."""
    runs = tmp_path_factory.mktemp("straight")
    assert fit(config, runs, *EPOCHS) == 0
    return runs / "tiny" / "version_0"


def fit(config: Path, runs: Path, *arguments: str) -> int:
    where = ["--trainer.default_root_dir", str(runs)]
    return main(["fit", "-c", str(config), *where, *arguments])


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """Raise ``error`` in the training step after ``step`` optimizer steps."""
    original = ClassificationTask.training_step

    def training_step(task: ClassificationTask, batch: Any, batch_idx: int) -> Any:
        if task.trainer.global_step == step:
            monkeypatch.setattr(ClassificationTask, "training_step", original)
            raise error
        return original(task, batch, batch_idx)

    monkeypatch.setattr(ClassificationTask, "training_step", training_step)


def last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def rows(folder: Path, first_step: int) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) >= first_step]


def assert_same_end(folder: Path, other: Path) -> None:
    """Check that weights, EMA weights, optimizer and schedule are bitwise equal."""
    ours, theirs = last(folder), last(other)
    assert ours["global_step"] == theirs["global_step"] == 12
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]
    for part in ("state_dict", "current_model_state"):
        for name, value in theirs[part].items():
            assert torch.equal(ours[part][name], value), (part, name)
    ours_groups, theirs_groups = (c["optimizer_states"][0] for c in (ours, theirs))
    assert ours_groups["param_groups"] == theirs_groups["param_groups"]
    for index, state in theirs_groups["state"].items():
        for name, value in state.items():
            assert torch.equal(ours_groups["state"][index][name], value), (index, name)


@pytest.mark.parametrize(
    "length", [EPOCHS, pytest.param(STEPS, marks=pytest.mark.slow)], ids=["epochs", "steps"]
)
def test_a_run_that_crashed_in_an_epoch_repeats_that_epoch(
    config: Path,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    length: tuple[str, ...],
) -> None:
    stop_at(monkeypatch, 7, RuntimeError("power failure"))
    assert fit(config, tmp_path, *length, "--checkpoint.save_on_exception", "false") == 1
    assert last(tmp_path / "tiny" / "version_0")["global_step"] == 6
    assert fit(config, tmp_path, *length, "--ckpt_path", "last") == 0
    continued = tmp_path / "tiny" / "version_1"
    assert "resumed" in (continued / "env.txt").read_text()
    assert_same_end(continued, straight)
    if length == EPOCHS:  # with max_steps, Lightning logs one step later after resuming
        assert rows(continued, 6) == rows(straight, 6)


def test_a_checkpoint_of_a_step_continues_after_that_step(
    config: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 8, RuntimeError("power failure"))
    often = ("--checkpoint.every_n_train_steps", "7", "--checkpoint.save_on_exception", "false")
    assert fit(config, tmp_path, *EPOCHS, *often) == 1
    assert last(tmp_path / "tiny" / "version_0")["global_step"] == 7
    assert fit(config, tmp_path, *EPOCHS, "--ckpt_path", "last") == 0
    assert_same_end(tmp_path / "tiny" / "version_1", straight)


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), pytest.param(RuntimeError("test error"), marks=pytest.mark.slow)],
)
def test_an_interrupted_run_loses_nothing(
    config: Path,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    stop_at(monkeypatch, 7, error)
    interrupted = isinstance(error, KeyboardInterrupt)
    assert fit(config, tmp_path, *EPOCHS) == (130 if interrupted else 1)
    if interrupted:
        assert "--ckpt_path last" in capsys.readouterr().err
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning ignores further Ctrl-C
    assert last(tmp_path / "tiny" / "version_0")["global_step"] == 7

    used: list[list[str]] = []
    original = ClassificationTask.training_step

    def training_step(task: ClassificationTask, batch: Any, batch_idx: int) -> Any:
        used.append(sorted(batch["path"]))
        return original(task, batch, batch_idx)

    monkeypatch.setattr(ClassificationTask, "training_step", training_step)
    assert fit(config, tmp_path, *EPOCHS, "--ckpt_path", "last") == 0
    assert last(tmp_path / "tiny" / "version_1")["global_step"] == 12
    # Epoch 2 continues after its first batch, followed by the complete epoch 3.
    assert len(used) == 5
    assert len({path for batch in used[:2] for path in batch}) == 16
    assert len({path for batch in used[2:] for path in batch}) == 24


def test_a_run_interrupted_during_validation_repeats_it(
    config: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ClassificationTask.evaluation_step

    def evaluation_step(task: ClassificationTask, *arguments: Any) -> None:
        if task.trainer.global_step == 9:
            monkeypatch.setattr(ClassificationTask, "evaluation_step", original)
            raise RuntimeError("test error")
        original(task, *arguments)

    monkeypatch.setattr(ClassificationTask, "evaluation_step", evaluation_step)
    assert fit(config, tmp_path, *EPOCHS) == 1
    assert last(tmp_path / "tiny" / "version_0")["global_step"] == 9
    assert fit(config, tmp_path, *EPOCHS, "--ckpt_path", "last") == 0
    continued = tmp_path / "tiny" / "version_1"
    assert_same_end(continued, straight)
    assert [row["val/loss"] for row in rows(continued, 9) if row["val/loss"]] == [
        row["val/loss"] for row in rows(straight, 9) if row["val/loss"]
    ]


def test_a_long_warmup_is_warned_of_once(config: Path, straight: Path, tmp_path: Path) -> None:
    resumed = ["--ckpt_path", str(straight / "checkpoints" / "last.ckpt")]
    long = ["--trainer.max_epochs", "5", "--model.lr_scheduler.warmup_steps", "15"]
    with pytest.warns(UserWarning, match="The warm-up of 15 steps") as caught:
        assert fit(config, tmp_path, *long, *resumed) == 0
    texts = [str(warning.message) for warning in caught]
    (text,) = (text for text in texts if text.startswith("The warm-up of 15 steps"))
    assert "not shorter than the training of 15 steps" in text


def test_last_is_from_the_highest_version(
    config: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    for version in (3, 7, 10):
        folder = runs / "tiny" / f"version_{version}" / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "last.ckpt").write_bytes((straight / "checkpoints" / "last.ckpt").read_bytes())
        os.utime(folder / "last.ckpt", (version % 10, version % 10))
    arguments = ["--ckpt_path", "last", "--trainer.limit_val_batches", "1"]
    where = ["--trainer.default_root_dir", str(runs)]
    assert main(["validate", "-c", str(config), *where, *arguments]) == 0
    assert "version_10/checkpoints/last.ckpt" in capsys.readouterr().out


def test_settings_come_from_the_configuration(config: Path, straight: Path, tmp_path: Path) -> None:
    changes = {
        "--trainer.max_epochs": "5",
        "--model.optimizer.lr": "0.1",
        "--model.optimizer.weight_decay": "0.2",
        "--model.lr_scheduler.min_lr": "0",
        "--model.label_smoothing": "0.25",
    }
    flat = [part for item in changes.items() for part in item]
    checkpoint = str(straight / "checkpoints" / "last.ckpt")
    assert fit(config, tmp_path, "--ckpt_path", checkpoint, *flat) == 0
    continued = last(tmp_path / "tiny" / "version_0")
    assert continued["global_step"] == 15
    assert continued["hyper_parameters"]["label_smoothing"] == 0.25
    decay, no_decay = continued["optimizer_states"][0]["param_groups"]
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.2, 0.0)
    assert decay["initial_lr"] == pytest.approx(0.1 * 8 / 512)
    assert decay["lr"] == 0.0  # the end of the new schedule


def test_message_if_training_is_already_complete(
    config: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = ["--ckpt_path", str(straight / "checkpoints" / "last.ckpt")]
    assert fit(config, tmp_path, *checkpoint, *EPOCHS) == 2
    shown = capsys.readouterr()
    assert "finished 4 epochs; trainer.max_epochs must be larger, and it is 4." in shown.err
    assert "Results:" not in shown.out  # no new folder is announced
    assert not (tmp_path / "tiny").exists()


def test_weights_without_optimizer_state_cannot_be_resumed(
    config: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = str(straight / "checkpoints" / "last.ckpt")
    alone = str(tmp_path / "weights.ckpt")
    assert main(["consolidate", whole, "--output", alone, "--weights_only"]) == 0
    assert fit(config, tmp_path, "--ckpt_path", alone, *EPOCHS) == 2
    assert "contains only weights" in capsys.readouterr().err


def test_the_best_score_of_the_resumed_run_is_kept(
    config: Path, straight: Path, tmp_path: Path
) -> None:
    checkpoint = str(straight / "checkpoints" / "last.ckpt")
    epochs = ["--trainer.max_epochs", "5"]
    assert fit(config, tmp_path, "--ckpt_path", checkpoint, *epochs) == 0
    before, after = (
        next(v for k, v in last(folder)["callbacks"].items() if k.startswith("Checkpoint"))
        for folder in (straight, tmp_path / "tiny" / "version_0")
    )
    assert after["best_model_score"] >= before["best_model_score"]
    assert Path(before["best_model_path"]).is_file()  # never deleted by another run


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_killed_run_resumes_to_the_same_result(
    config: Path, tmp_path: Path, workers: str
) -> None:
    def command(runs: str, *arguments: str) -> list[str]:
        where = ["--trainer.default_root_dir", str(tmp_path / runs)]
        flags = [*EPOCHS, "--data.num_workers", workers, *where, *arguments]
        return [sys.executable, "-m", "src", "fit", "-c", str(config), *flags]

    kill = ["--trainer.callbacks+=tests.cli.crash.KillAt", "--trainer.callbacks.step", "8"]
    died = subprocess.run(command("killed", *kill), cwd=ROOT, capture_output=True, timeout=560)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    subprocess.run(command("killed", "--ckpt_path", "last"), cwd=ROOT, timeout=560, check=True)
    subprocess.run(command("straight"), cwd=ROOT, timeout=560, check=True)
    ends = [
        tmp_path / "killed" / "tiny" / "version_1",
        tmp_path / "straight" / "tiny" / "version_0",
    ]
    assert_same_end(*ends)
    assert rows(ends[0], 6) == rows(ends[1], 6)
