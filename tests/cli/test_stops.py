"""A signal stops a command gracefully, and the resumed run ends like an uninterrupted one."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from src.callbacks import AtomicCheckpointIO
from src.cli import main
from src.cli.process_failures import explanation
from src.tasks import ClassificationTask
from tests.cli.test_resume import assert_same_end, last, rows
from tests.distributed.stops import children_of

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = ("--trainer.max_epochs", "4", "--data.eval_batch_size", "4")  # 3 + 3 batches per epoch
STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn off the time limit for steps, which a busy machine could exceed."""
    monkeypatch.setattr("src.stopping.PATIENCE", 3600.0)
    monkeypatch.setattr("src.stopping.LIMIT", 3600.0)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def straight(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of an uninterrupted run."""
    runs = tmp_path_factory.mktemp("straight")
    assert fit(config, runs) == 0
    return runs / "tiny" / "version_0"


def fit(config: Path, runs: Path, *arguments: str, command: str = "fit") -> int:
    where = ["--trainer.default_root_dir", str(runs)]
    return main([command, "-c", str(config), *where, *EPOCHS, *arguments])


def send_to_workers(number: int) -> None:
    """Send a signal to the data loader workers from another process, not from their parent."""
    pids = [str(child) for child in children_of(os.getpid())]
    if pids:
        subprocess.run(["kill", f"-{int(number)}", *pids], check=True)


def send_to_group(number: int) -> None:
    """Send a signal to the data loader workers of this process, then to itself."""
    send_to_workers(number)
    os.kill(os.getpid(), number)


def signal_at(
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    reached: Callable[[ClassificationTask], bool],
    number: int = signal.SIGTERM,
    owner: type = ClassificationTask,
) -> None:
    """Send a signal to the group once, before ``method``, when ``reached(task)`` is true."""
    original = getattr(owner, method)

    def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
        if reached(self):
            monkeypatch.setattr(owner, method, original)
            send_to_group(number)
        return original(self, *arguments, **named)

    monkeypatch.setattr(owner, method, wrapped)


def assert_continues_like(straight: Path, config: Path, runs: Path, first_step: int) -> None:
    """Resume from ``last`` and compare with the uninterrupted run."""
    assert fit(config, runs, "--ckpt_path", "last") == 0
    continued = runs / "tiny" / "version_1"
    assert_same_end(continued, straight)
    names = ("val/loss", "val/top1")
    values = [
        [[row[name] for name in names] for row in rows(folder, first_step) if row["val/loss"]]
        for folder in (continued, straight)
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_in_an_epoch_loses_nothing(
    config: Path,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)
    signal_at(monkeypatch, "training_step", lambda task: task.global_step == 7, number)
    assert fit(config, tmp_path) == 130
    text = capsys.readouterr().err
    assert text.endswith("To resume, run the same command with --ckpt_path last\n")
    best = str(tmp_path / "tiny" / "version_0" / "checkpoints" / "best-epoch=")
    assert f"The best checkpoint so far is {best}" in text
    assert f"python -m src predict --ckpt_path {best}" in text.replace("'", "")
    assert last(tmp_path / "tiny" / "version_0")["global_step"] == 8
    assert signal.getsignal(number) == before
    assert_continues_like(straight, config, tmp_path, 8)


def test_an_interrupted_run_without_a_validation_predicts(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    images: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    signal_at(monkeypatch, "training_step", lambda task: task.global_step == 1)
    assert fit(config, Path("runs")) == 130
    text = capsys.readouterr().err
    assert "There is no best checkpoint yet" in text
    command = re.search("To predict: python -m src (.*) FOLDER\n", text)
    assert command is not None
    assert main([*shlex.split(command[1]), str(images / "val" / "red")]) == 0
    note = "note: runs/tiny has no best checkpoint, which is written after a validation; its last"
    for arguments in (["validate"], ["export", "--format", "safetensors"]):
        assert note not in capsys.readouterr().out  # of the command with the file
        assert main([*arguments, "--name", "tiny"]) == 0
        text = capsys.readouterr().out
        assert f"{note} one is used: runs/tiny/version_0/checkpoints/last.ckpt" in text
        assert text.count("note: ") == 1
    assert main(["predict", "--name", "tiny", "--ckpt_path", "best"]) == 2
    assert "There is a 'last' one: add --ckpt_path last." in capsys.readouterr().err


def test_workers_ignore_a_signal_to_the_process_group(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = ("--data.num_workers", "2")
    signal_at(monkeypatch, "training_step", lambda task: task.global_step == 4)
    assert fit(config, tmp_path, *workers) == 130
    assert last(tmp_path / "tiny" / "version_0")["global_step"] == 5
    assert fit(config, tmp_path, *workers, "--ckpt_path", "last") == 0
    assert last(tmp_path / "tiny" / "version_1")["global_step"] == 12


def test_a_signal_to_the_workers_alone_is_ignored(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ClassificationTask.training_step

    def training_step(task: ClassificationTask, *arguments: Any) -> Any:
        for number in STOPS:
            send_to_workers(number)
        return original(task, *arguments)

    monkeypatch.setattr(ClassificationTask, "training_step", training_step)
    assert fit(config, tmp_path, "--data.num_workers", "2") == 0


def test_validation_is_repeated_after_a_signal(
    config: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    original = ClassificationTask.validation_step

    def validation_step(task: ClassificationTask, *arguments: Any) -> None:
        steps.append(task.global_step)
        if steps.count(9) == 2 and len(steps) == 8:  # the second batch of the third validation
            send_to_group(signal.SIGTERM)
        original(task, *arguments)

    monkeypatch.setattr(ClassificationTask, "validation_step", validation_step)
    assert fit(config, tmp_path) == 130
    assert steps.count(9) == 2
    assert last(tmp_path / "tiny" / "version_0")["global_step"] == 9
    assert_continues_like(straight, config, tmp_path, 9)


def test_a_signal_in_the_last_step_of_an_epoch_waits_for_its_end(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rarely = ("--trainer.check_val_every_n_epoch", "4", "--checkpoint.every_n_epochs", "4")
    assert fit(config, tmp_path / "straight", *rarely) == 0
    signal_at(monkeypatch, "training_step", lambda task: task.global_step == 5)
    assert fit(config, tmp_path, *rarely) == 130
    assert last(tmp_path / "tiny" / "version_0")["global_step"] == 6
    assert fit(config, tmp_path, *rarely, "--ckpt_path", "last") == 0
    ends = (tmp_path / "tiny" / "version_1", tmp_path / "straight" / "tiny" / "version_0")
    assert_same_end(*ends)
    assert [r["val/loss"] for r in rows(ends[0], 9)] == [r["val/loss"] for r in rows(ends[1], 9)]


def test_a_signal_while_accumulating_waits_for_the_step(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (
        "--trainer.accumulate_grad_batches",
        "2",
        "--data.batch_size",
        "4",
    )  # 3 steps per epoch
    assert fit(config, tmp_path / "straight", *flags) == 0
    calls = []
    signal_at(monkeypatch, "training_step", lambda task: calls.append(0) or len(calls) == 9)
    assert (
        fit(config, tmp_path, *flags) == 130
    )  # the ninth batch is the first batch of the fifth step
    assert last(tmp_path / "tiny" / "version_0")["global_step"] == 5
    assert fit(config, tmp_path, *flags, "--ckpt_path", "last") == 0
    ends = (tmp_path / "tiny" / "version_1", tmp_path / "straight" / "tiny" / "version_0")
    assert_same_end(*ends)


def test_a_signal_before_the_first_step_saves_nothing(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    signal_at(monkeypatch, "evaluation_step", lambda task: task.trainer.sanity_checking)
    assert fit(config, tmp_path, "--trainer.num_sanity_val_steps", "2") == 130
    assert "Nothing was saved" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))


def test_an_interrupted_run_leads_to_its_trial(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trial = tmp_path / "tiny_trial/version_0/checkpoints/last.ckpt"
    trial.parent.mkdir(parents=True)
    trial.touch()
    signal_at(monkeypatch, "training_step", lambda task: task.global_step == 0)
    assert fit(config, tmp_path) == 130
    assert "Its trial tiny_trial has a checkpoint" in capsys.readouterr().err


def test_a_signal_during_data_setup_stops_at_once(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_at(monkeypatch, "configure_model", lambda _: True)
    assert fit(config, tmp_path) == 130
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_a_signal_in_an_evaluation_stops_it(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    images: Path,
    command: str,
) -> None:
    flags = ["--ckpt_path", str(next(trained.rglob("last.ckpt"))), "--data.eval_batch_size", "2"]
    if command == "predict":
        flags += ["--data.predict_dir", str(images / "val" / "red")]
    step = "predict_step" if command == "predict" else "validation_step"
    signal_at(monkeypatch, step, lambda _: True)
    assert fit(trained / "tiny.yaml", tmp_path, *flags, command=command) == 130
    assert f"{command} has not finished" in capsys.readouterr().err


def test_a_signal_while_a_checkpoint_is_written_waits_for_it(
    config: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = ("--checkpoint.every_n_train_steps", "5")
    signal_at(monkeypatch, "save_checkpoint", lambda _: True, owner=AtomicCheckpointIO)
    # The first file is the best checkpoint of the first epoch, the second its last.ckpt.
    assert fit(config, tmp_path, *often) == 130
    folder = tmp_path / "tiny" / "version_0" / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"best-epoch=0.ckpt", "last.ckpt"}
    assert_continues_like(straight, config, tmp_path, 3)


def test_an_error_within_an_optimizer_step_keeps_the_checkpoint_before(
    config: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def step(optimizer: torch.optim.AdamW, closure: Callable[[], Any]) -> Any:
        closure()
        steps.append(0)
        if len(steps) == 8:
            raise RuntimeError("test error")
        return original(optimizer)

    original = torch.optim.AdamW.step
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        assert fit(config, tmp_path) == 1
    assert last(tmp_path / "tiny" / "version_0")["global_step"] == 6
    assert_continues_like(straight, config, tmp_path, 6)


def test_a_signal_that_nohup_ignores_is_ignored(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signal_at(monkeypatch, "training_step", lambda _: True, signal.SIGHUP)
        assert fit(config, tmp_path) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_workers_end_with_their_parent(config: Path, tmp_path: Path) -> None:
    kill = ["--trainer.callbacks+=tests.cli.crash.KillAt", "--trainer.callbacks.step", "2"]
    where = ["--trainer.default_root_dir", str(tmp_path), "--data.num_workers", "2", *kill]
    died = subprocess.run(  # returns when the last process has closed the pipe
        [sys.executable, "-m", "src", "fit", "-c", str(config), *where],
        cwd=ROOT,
        capture_output=True,
        timeout=300,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "ran out of memory"),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "ran out of memory"),
        ("DataLoader worker (pid 7) is killed by signal: Segmentation fault. ", "Segmentation"),
        (
            "DataLoader worker (pid 7) is killed by signal: Terminated. ",
            "was killed or has crashed",
        ),
        (
            "DataLoader worker (pid 7) exited unexpectedly with exit code 3. Details are lost",
            "exit code 3",
        ),
        (
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that"
            " dataloader's workers are out of shared memory.",
            "/dev/shm",
        ),
        ("unable to write to file </torch_7_1_0>: No space left on device (28)", "/dev/shm"),
        (
            "Caught RuntimeError in DataLoader worker process 0.\nTraceback\nRuntimeError: unable"
            " to allocate shared memory(shm) for file </torch_7>: No space left on device (28)",
            "/dev/shm",
        ),
    ],
)
def test_message_about_a_dead_worker(message: str, expected: str) -> None:
    assert expected in (explanation(RuntimeError(message)) or "")
    error = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    error.__cause__ = RuntimeError(message)
    assert expected in (explanation(error) or "")


def test_other_errors_have_no_message_about_workers() -> None:
    assert explanation(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_while_a_command_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    class SlowThread(threading.Thread):
        def start(self) -> None:
            super().start()
            os.kill(os.getpid(), number)

    monkeypatch.setattr("src.stopping.threading.Thread", SlowThread)
    assert main(["env"]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("Interrupted. Run the same command again.\n")
