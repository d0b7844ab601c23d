"""``fit`` says how long training will take, and how to make it a short trial."""

import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from src.callbacks import TimeEstimate
from src.callbacks.time_estimate import busy_cores
from src.cli import main
from tests.cli.tiny import TASKS, write_data
from tests.cli.tiny import write_recipe as write_tiny

LINE = re.compile(r"Time: +about (\d.*) for (.*) \(\S+ s a step, validation not counted\)")


@pytest.fixture
def lengths(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """The lengths of training named by the estimates printed since the last call."""
    return lambda: [found[2] for found in LINE.finditer(capsys.readouterr().out)]


@pytest.fixture
def run(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Train with three steps per epoch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("src.callbacks.time_estimate._STEPS", 4)
    write_recipe(tmp_path)
    return lambda *options: main(["fit", "-c", "tiny.yaml", *options])


def test_the_length_of_training(run: Callable[..., int], lengths: Callable[[], list[str]]) -> None:
    assert run("--trainer.max_epochs", "3") == 0
    assert lengths() == ["3 epochs of 3 steps"]
    resumed = ["--ckpt_path", "last", "--trainer.max_epochs"]
    assert run(*resumed, "7") == 0
    assert lengths() == ["the remaining 4 epochs of 3 steps"]
    assert run(*resumed, "20", "--trainer.max_steps", "26") == 0
    assert lengths() == ["the remaining 5 steps"]
    for option in (["--trainer.fast_dev_run", "true"], ["--trainer.max_time", "00:01:00:00"]):
        assert run(*option) == 0
        assert lengths() == []


@pytest.mark.parametrize(
    ("load", "short", "is_told"), [(0.5, 0.0, False), (2.6, 0.0, True), (2.6, 1e9, False)]
)
def test_other_programs_are_named(
    run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    load: float,
    short: float,
    is_told: bool,
) -> None:
    monkeypatch.setattr("src.callbacks.time_estimate.busy_cores", lambda: load)
    monkeypatch.setattr("src.callbacks.time_estimate._SHORT", short)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert run("--trainer.max_epochs", "3") == 0
    output = capsys.readouterr().out
    assert ("Other programs use 2.6 of the " in output) == is_told
    command = "with one thread (docs/faq.md): OMP_NUM_THREADS=1 python -m src fit -c tiny.yaml --"
    assert (command in output) == is_told


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="measured on Linux only")
def test_a_program_that_computes_is_measured() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as program:
        try:
            assert busy_cores() > 0.2  # of one core, which others may share
        finally:
            program.kill()


def test_only_other_programs_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A core of four computes for this process and one for another; two are idle."""
    own = tmp_path / str(os.getpid()) / "stat"
    own.parent.mkdir()

    def write(ticks: int) -> None:
        kinds = [100 + ticks, ticks, 0, 900 + ticks, ticks, 0, 0]  # user, nice, system, idle, ...
        (tmp_path / "stat").write_text(f"cpu  {' '.join(map(str, kinds))} 0 0 0\ncpu0 1 1\n")
        used = [f"{ticks - 5}", "5"] if ticks else ["0", "0"]
        own.write_text(f"{own.parent.name} (a (program) b) S {'7 ' * 10}{' '.join(used)} 0 0\n")

    write(0)
    monkeypatch.setattr("src.callbacks.time_estimate._PROC", tmp_path)
    monkeypatch.setattr("src.callbacks.time_estimate.time.sleep", lambda _: write(50))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert busy_cores() == 1.0


def test_nothing_is_measured_on_other_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.callbacks.time_estimate._PROC", tmp_path)
    assert busy_cores() == 0.0


@pytest.mark.parametrize(("short", "is_told"), [(0.0, True), (1e9, False)])
def test_other_programs_are_named_if_much_remains(
    trained: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    short: float,
    is_told: bool,
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setattr("src.callbacks.time_estimate.busy_cores", lambda: 2.6)
    monkeypatch.setattr("src.callbacks.time_estimate._PATIENCE", 0.0)
    monkeypatch.setattr("src.callbacks.time_estimate._SHORT", short)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    predict = ["predict", "--name", "tiny", "--data.predict_dir", str(images / "val/red")]
    for command, slow in (
        (["validate", "--name", "tiny"], "validation"),
        (["test", "--name", "tiny"], "the test"),
        (predict, "prediction"),
    ):
        assert main([*command, "--data.eval_batch_size", "1"]) == 0
        text = (
            r"Note: .* can make (.*) several times slower.*: OMP_NUM_THREADS=1 python -m src (.*)"
        )
        found = re.findall(text, capsys.readouterr().out)
        assert [what for what, _ in found] == ([slow] if is_told else [])
        for _, whole in found:
            repeated = shlex.split(whole)
            assert set(command) <= set(repeated)
            assert main(repeated) == 0
            capsys.readouterr()


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_other_programs_are_not_named_in_the_first_half_minute(
    trained: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setattr("src.callbacks.time_estimate.busy_cores", lambda: 2.6)
    monkeypatch.setattr("src.callbacks.time_estimate._PATIENCE", 1e9)
    monkeypatch.setattr("src.callbacks.time_estimate._SHORT", 0.0)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    flags = ["--name", "tiny", "--data.predict_dir", str(images / "val/red")]
    assert main([command, *flags, "--data.eval_batch_size", "1"]) == 0
    assert "Other programs" not in capsys.readouterr().out


def test_one_slow_step_does_not_change_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    clock = iter([0.0, 50.0, 51.0, 90.0, 91.0])
    monkeypatch.setattr("src.callbacks.time_estimate.tell", printed.append)
    monkeypatch.setattr("src.callbacks.time_estimate.remaining_batches", lambda _: 96)
    monkeypatch.setattr("src.callbacks.time_estimate.time.monotonic", lambda: next(clock))
    trainer = SimpleNamespace(
        callbacks=[],
        global_step=0,
        num_training_batches=100,
        fast_dev_run=False,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    estimate = TimeEstimate()
    monkeypatch.setattr("src.callbacks.time_estimate.busy_cores", lambda: 0.0)
    estimate.on_train_start(trainer, None)  # type: ignore[arg-type]
    for index in range(4):
        estimate.on_train_batch_end(trainer, None, None, None, index)  # type: ignore[arg-type]
    (line,) = printed
    assert "about 2 min for 1 epoch of 100 steps (1 s a step" in line


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The lines of a run of 1000 steps, given the seconds of its steps and the busy cores."""

    def train(seconds: list[float], loads: list[float]) -> list[str]:
        printed: list[str] = []
        module = "src.callbacks.time_estimate"
        now, left = 0.0, 1000
        busy = iter(loads)
        monkeypatch.setattr(f"{module}.tell", printed.append)
        monkeypatch.setattr(f"{module}.remaining_batches", lambda _: left)
        monkeypatch.setattr(f"{module}.time.monotonic", lambda: now)
        monkeypatch.setattr(f"{module}.busy_cores", lambda: next(busy))
        monkeypatch.setattr("torch.get_num_threads", lambda: 2)
        monkeypatch.setattr(sys, "argv", ["src", "fit", "-c", "tiny.yaml", "--ckpt_path=best"])
        trainer = SimpleNamespace(
            callbacks=[],
            global_step=1,  # resumed: no trial
            num_training_batches=10,
            fast_dev_run=False,
            world_size=1,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        estimate = TimeEstimate()
        estimate.on_train_start(trainer, None)  # type: ignore[arg-type]
        for index, each in enumerate(seconds):
            now, left = now + each, left - 1
            estimate.on_train_batch_end(trainer, None, None, None, index)  # type: ignore[arg-type]
        assert next(busy, None) is None  # measured as often as expected
        return printed

    return train


def test_the_estimate_is_printed_again_if_the_cpu_becomes_busy(
    pace: Callable[..., list[str]],
) -> None:
    lines = pace([0.5] * 70 + [1.5] * 100, [0.0, 1.8])
    assert len(lines) == 3
    assert "about 8 min for the remaining 100 epochs of 10 steps (0.5 s a step" in lines[0]
    assert "about 23 min for the remaining 91 epochs of 10 steps (1.5 s a step" in lines[1]
    assert "Other programs use 1.8 of the " in lines[2]
    command = "OMP_NUM_THREADS=1 python -m src fit -c tiny.yaml --ckpt_path last"
    assert lines[2].endswith(f"stop it and resume it with one thread (docs/faq.md): {command}")


@pytest.mark.parametrize(
    ("seconds", "loads", "count"),
    [
        ([0.5] * 90 + [0.9] * 200, [0.0], 1),
        ([0.5] * 10 + [1.5] * 60, [0.0, 0.2, 0.2, 0.2], 1),
        ([0.5] * 10 + [1.5] * 200, [1.8], 2),
        ([0.5] * 950 + [1.5] * 40, [0.0], 1),
        ([0.5] * 10 + [1.5] * 60, [0.0, 0.2, 1.8], 3),
    ],
    ids=["little_slower", "others_are_idle", "told_before", "nearly_done", "busy_later"],
)
def test_when_a_slow_run_is_measured_again(
    pace: Callable[..., list[str]], seconds: list[float], loads: list[float], count: int
) -> None:
    assert len(pace(seconds, loads)) == count


@pytest.fixture
def trial(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[], list[str]]:
    """The arguments of a short trial that were printed, for runs of any length."""
    monkeypatch.setattr("src.callbacks.time_estimate._LONG", 0.0)
    monkeypatch.setattr("src.callbacks.time_estimate._STEPS", 4)
    monkeypatch.setattr("src.callbacks.time_estimate.busy_cores", lambda: 0.0)

    def read(has_few_detections: bool = False) -> list[str]:
        ((text, command),) = re.findall(r"For a short trial(.*): (.*)", capsys.readouterr().out)
        assert ("detections usually score below 0.3" in text) == has_few_detections
        return shlex.split(command.removeprefix("python -m src "))

    return read


@pytest.mark.parametrize("task", TASKS)
def test_a_short_trial_of_a_long_run(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trial: Callable[[], list[str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = write_tiny(tmp_path, task, write_data(tmp_path / "data", task))
    command = ["fit", "-c", str(recipe), "--trainer.check_val_every_n_epoch", "4"]
    long = ["--trainer.max_epochs=4", "--model.lr_scheduler.warmup_steps", "7", "--name", "long"]
    assert main([*command, *long]) == 0
    short = trial(has_few_detections=task == "detection")
    options = ["--trainer.max_epochs", "2", "--model.lr_scheduler.warmup_steps", "0"]
    assert short == [*command, *options, "--name", "long_trial"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The warm-up")
        assert main(short) == 0
    checkpoints = tmp_path / "runs/long_trial/version_0/checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"best-epoch=1.ckpt", "last.ckpt"}


def test_a_trial_on_a_busy_cpu_has_one_thread(
    run: Callable[..., int],
    trial: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("src.callbacks.time_estimate.busy_cores", lambda: 9.0)
    monkeypatch.setattr("src.callbacks.time_estimate._SHORT", 0.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert run() == 0
    printed = capsys.readouterr().out
    assert "run it with one thread (docs/faq.md): OMP_NUM_THREADS=1 python -m src fit " in printed
    assert re.search(r"For a short trial.*: OMP_NUM_THREADS=1 python -m src fit ", printed)


def test_a_cpu_that_becomes_busy_leads_to_commands_to_resume_and_for_a_trial(
    run: Callable[..., int],
    trial: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loads = iter([0.0, 9.0])
    monkeypatch.setattr("src.callbacks.time_estimate.busy_cores", lambda: next(loads, 0.0))
    for limit in ("_SHORT", "_PATIENCE", "_SLOWER"):
        monkeypatch.setattr(f"src.callbacks.time_estimate.{limit}", 0.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert run("--trainer.max_epochs", "4") == 0
    printed = capsys.readouterr().out
    assert len(LINE.findall(printed)) == 2
    first, again = re.findall(r"For a short trial.*: (.*)", printed)
    assert again == f"OMP_NUM_THREADS=1 {first}"
    (resume,) = re.findall(r"resume it .*: OMP_NUM_THREADS=1 python -m src (.*)", printed)
    assert main([*shlex.split(resume), "--trainer.max_epochs", "6"]) == 0
    assert "the remaining 2 epochs of 3 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("busy", "expected", "length"),
    [(0.0, "2", "about 3 min"), (9.0, "3", "2 min to 4 min")],
    ids=["idle", "busy"],
)
def test_a_trial_on_a_busy_cpu_has_more_epochs_because_one_thread_is_faster(
    busy: float,
    expected: str,
    length: str,
    run: Callable[..., int],
    trial: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Epochs of 90 seconds, of which a trial of three minutes has two."""
    monkeypatch.setattr("src.callbacks.time_estimate.busy_cores", lambda: busy)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("src.callbacks.time_estimate.statistics.median", lambda _: 30.0)
    assert run("--trainer.max_epochs", "12", "--trainer.check_val_every_n_epoch", "12") == 0
    printed = capsys.readouterr().out
    assert "about 18 min for 12 epochs of 3 steps (30 s a step" in printed
    assert f"For a short trial of {length}, which shows that all works: " in printed
    assert f" --trainer.max_epochs {expected} " in printed


def test_a_trial_of_long_epochs_has_few_steps(
    run: Callable[..., int], trial: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.callbacks.time_estimate._TRIAL", 0.0)
    assert run() == 0
    _, _, _, *options = trial()  # without fit -c tiny.yaml
    assert options[:2] == ["--trainer.max_steps", "1"]
    assert run(*options) == 0


def test_a_trial_of_short_epochs_has_more_of_them(
    run: Callable[..., int], trial: Callable[[], list[str]]
) -> None:
    assert run("--trainer.max_epochs", "20") == 0
    assert trial()[3:5] == ["--trainer.max_epochs", "5"]


@pytest.mark.parametrize(("warmup", "shortened"), [(3, 3), (4, 1)])
def test_a_quarter_of_a_trial_may_be_warm_up(
    run: Callable[..., int], trial: Callable[[], list[str]], warmup: int, shortened: int
) -> None:
    option = "--model.lr_scheduler.warmup_steps"
    assert run("--trainer.max_epochs", "20", option, str(warmup)) == 0
    arguments = trial()  # of 15 steps
    assert arguments[arguments.index(option) + 1] == str(shortened)
