"""Jobs of SLURM, with stand-ins for its commands: signal, requeue, resume, the sbatch file."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from src.cli.slurm import checkpoint_of_requeued_job, requeue
from src.environment import SLURM_JOB
from src.tasks import ClassificationTask
from tests.cli.test_stops import ROOT, assert_same_end, fit, last, signal_at
from tests.distributed.stops import END, START

SCRIPT = ROOT / "configs" / "trainer" / "slurm.sbatch"
TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "internimage",
    "SLURM_NNODES": "1",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
}
RANK = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.fixture
def requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Environment of a rank; the file lists the calls of ``scontrol``."""
    calls = tmp_path / "scontrol.txt"
    make_command(tmp_path / "bin" / "scontrol", f'echo "$@" >> {shlex.quote(str(calls))}')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    for name, value in (TASK | RANK).items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    return calls


def make_command(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    path.chmod(0o755)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


def test_a_requeued_job_ends_like_an_uninterrupted_one(
    config: Path,
    requeued: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fit(config, tmp_path / "straight") == 0
    runs = tmp_path / "runs"
    assert fit(config, runs, "--trainer.max_epochs", "1") == 0  # an earlier run of another job
    text = (runs / "tiny" / "version_0" / "env.txt").read_text().replace("4711", "4710")
    (runs / "tiny" / "version_0" / "env.txt").write_text(text)

    signal_at(monkeypatch, "training_step", lambda task: task.global_step == 7, signal.SIGUSR1)
    assert fit(config, runs) == 130
    assert requeued.read_text() == "requeue 4711\n"
    assert "SLURM job 4711 is requeued" in capsys.readouterr().err
    assert last(runs / "tiny" / "version_1")["global_step"] == 8

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert fit(config, runs) == 0
    assert_same_end(runs / "tiny" / "version_2", tmp_path / "straight" / "tiny" / "version_0")


def test_a_job_that_has_saved_nothing_starts_again(
    config: Path, requeued: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fit(config, tmp_path, "--trainer.max_epochs", "1") == 0
    record_job(tmp_path / "tiny" / "version_0", "4710")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert fit(config, tmp_path, "--trainer.max_epochs", "1") == 0
    assert last(tmp_path / "tiny" / "version_1")["global_step"] == 3


def record_job(run: Path, job: str) -> None:
    """Write an ``env.txt`` of a job."""
    (run / "env.txt").write_text(f"{SLURM_JOB} {job}\n")


def test_a_checkpoint_left_between_two_renames_is_found(
    requeued: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    jobs = {
        "version_0_old": "4711",
        "version_9": "4711",
        "version_10": "4711",
        "version_11": "4710",
    }
    for name, job in jobs.items():
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "last.ckpt").touch()
        record_job(tmp_path / name, job)
    newest = tmp_path / "version_10" / "checkpoints" / "last.ckpt"
    assert checkpoint_of_requeued_job(tmp_path) == newest
    newest.rename(newest.with_name("last.ckpt.old"))
    assert checkpoint_of_requeued_job(tmp_path) == newest.with_name("last.ckpt.old")


def test_sigterm_does_not_requeue(
    config: Path, requeued: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_at(
        monkeypatch,
        "training_step",
        lambda task: task.global_step == 4,
        signal.SIGTERM,
        ClassificationTask,
    )
    assert fit(config, tmp_path) == 130
    assert not requeued.exists()


def test_a_failure_to_requeue_is_reported(requeued: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert requeue().startswith("Interrupted. SLURM job 12_3 is requeued")
    assert requeued.read_text() == "requeue 12_3\n"
    make_command(requeued.parent / "bin" / "scontrol", "echo 'access denied' >&2; exit 1")
    assert "`scontrol requeue 12_3` failed: access denied" in requeue()
    make_command(requeued.parent / "bin" / "scontrol", "echo >&2; exit 1")
    assert "returned non-zero exit status 1" in requeue()


def test_the_sbatch_file_has_the_options_that_requeueing_needs() -> None:
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", SCRIPT.read_text(), re.M))
    assert re.fullmatch(r"USR1@\d+", options["signal"])  # without B: to the ranks
    assert {"requeue", "nodes", "ntasks-per-node", "time"} <= options.keys()
    assert options["open-mode"] == "append"


@pytest.mark.slow
def test_the_sbatch_file_trains_stops_and_resumes(
    config: Path, requeued: Path, tmp_path: Path
) -> None:
    """The stand-in of ``srun`` becomes the only task, so SLURM's signal is sent to the job."""
    variables = " ".join(f"{name}={value}" for name, value in RANK.items())
    make_command(
        tmp_path / "bin" / "srun",
        '[ "$1 $2" = "--kill-on-bad-exit=1 python" ] || exit 99',
        f"export {variables}",
        f'shift 2; exec {shlex.quote(sys.executable)} "$@"',
    )
    reports = tmp_path / "reports"
    reports.mkdir()
    more = ["--trainer.max_epochs", "30", "--trainer.default_root_dir", str(tmp_path / "runs")]
    more += ["--trainer.callbacks+=tests.distributed.stops.ReportSteps"]
    more += ["--trainer.callbacks.folder", str(reports)]
    command = ["bash", str(SCRIPT), str(config), *more]
    job = subprocess.Popen(command, cwd=ROOT, env=os.environ | TASK)
    try:
        limit = time.monotonic() + START
        while not (reports / "0").exists():
            assert job.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(END) == 130
    finally:
        job.kill()
        job.wait()
    assert requeued.read_text() == "requeue 4711\n"
    run = tmp_path / "runs" / "internimage-4711"
    assert 0 < last(run / "version_0")["global_step"] < 90

    again = os.environ | TASK | {"SLURM_RESTART_COUNT": "1"}
    assert subprocess.run(command, cwd=ROOT, env=again, check=False).returncode == 0
    assert last(run / "version_1")["global_step"] == 90
    assert "version_0" in (run / "version_1" / "env.txt").read_text()
