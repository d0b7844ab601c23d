"""Stop runs with signals and measure the time; used by ``test_stops.py``.

``python -m tests.distributed.stops --ranks 1 2 4`` prints the table of docs/scaling.md.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image

from src.distributed.checkpoints import is_sharded_checkpoint, read_rest

ROOT = Path(__file__).resolve().parents[2]
START = 300.0  # seconds until the first steps, on a busy machine
END = 120.0  # seconds until a run that has not ended is killed
WHO = ("main", "group", "ranks", "last rank")


class ReportSteps(Callback):
    """Write the process id and steps of every rank to ``<folder>/<rank>``.

    Args:
        folder: Existing folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.counts = dict.fromkeys(("train", "val", "predict"), 0)

    def _count(self, trainer: Any, what: str) -> None:
        self.counts[what] += 1
        part = self.folder / f"{trainer.global_rank}.part"
        part.write_text(json.dumps({"pid": os.getpid(), **self.counts}))
        part.replace(self.folder / str(trainer.global_rank))

    def on_train_batch_end(self, trainer: Any, *_: object) -> None:
        self._count(trainer, "train")

    def on_validation_batch_end(self, trainer: Any, *_: object) -> None:
        self._count(trainer, "val")

    def on_predict_batch_end(self, trainer: Any, *_: object) -> None:
        self._count(trainer, "predict")


class Stuck(Callback):
    """Block forever after the first step, so that no Python signal handler can run."""

    def on_train_batch_end(self, *_: object) -> None:
        print("stuck", flush=True)
        libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)


@dataclass
class Stop:
    """Result of a stopped run.

    Attributes:
        code: Exit code of the launcher.
        seconds: From the signal until the launcher has ended.
        all_seconds: From the signal until all its processes have ended; ``None`` after a timeout.
        step: Step of the last checkpoint, ``None`` if there is none.
        steps_before: Steps of rank 0 before the signal.
        output: Output of all processes.
    """

    code: int
    seconds: float
    all_seconds: float | None
    step: int | None
    steps_before: int
    output: str


class Process:
    """A command in its own process group.

    Args:
        folder: Folder for the runs and the reports.
        arguments: Command and arguments; the callback for reports is added.
        ranks: Number of ranks.
        torchrun: Start the ranks with torchrun instead of Lightning.
    """

    def __init__(
        self, folder: Path, *arguments: str, ranks: int = 1, torchrun: bool = False
    ) -> None:
        self.folder, self.ranks = folder, ranks
        self.reports = Path(tempfile.mkdtemp(prefix="reports_", dir=folder))
        self.log = self.reports / "log.txt"
        launcher = ["-m", "src"]
        if torchrun:
            launcher = ["-m", "torch.distributed.run", "--standalone"]
            launcher += [f"--nproc_per_node={ranks}", "-m", "src"]
        given = [*arguments, "--trainer.default_root_dir", str(folder / "runs")]
        given += ["--trainer.devices", str(ranks)]
        given += ["--trainer.callbacks+=tests.distributed.stops.ReportSteps"]
        given += ["--trainer.callbacks.folder", str(self.reports)]
        self.process = subprocess.Popen(
            [sys.executable, *launcher, *given],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def report(self, rank: int = 0) -> dict[str, int]:
        """Progress of a rank."""
        path = self.reports / str(rank)
        return json.loads(path.read_text()) if path.exists() else {}

    def wait_for(self, what: str, count: int) -> None:
        """Wait until all ranks have processed a number of batches."""
        limit = time.monotonic() + START
        while any(self.report(rank).get(what, 0) < count for rank in range(self.ranks)):
            if self.process.poll() is not None or time.monotonic() > limit:
                self.kill()
                raise AssertionError(self.log.read_text())
            time.sleep(0.01)

    def wait_for_output(self, text: str) -> None:
        """Wait until a text is printed."""
        limit = time.monotonic() + START
        while text not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > limit:
                self.kill()
                raise AssertionError(self.log.read_text())
            time.sleep(0.01)

    def send(self, who: str, number: int) -> None:
        """Send a signal to one of `WHO`, or to the data loader workers of rank 0."""
        pids = [self.report(rank).get("pid", 0) for rank in range(self.ranks)]
        if who == "group":
            os.killpg(self.process.pid, number)
        elif who == "workers":
            for pid in children_of(pids[0]):
                os.kill(pid, number)
        else:
            chosen = {"main": [self.process.pid], "ranks": pids, "last rank": pids[-1:]}[who]
            for pid in chosen:
                os.kill(pid, number)

    def stop(self, who: str, number: int) -> Stop:
        """Send a signal and wait for the end."""
        before = self.report().get("train", 0)
        begin = time.monotonic()
        self.send(who, number)
        return self.wait(before, begin)

    def wait(self, steps_before: int, begin: float) -> Stop:
        """Wait for the end after a signal."""
        try:
            code = self.process.wait(END)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError("it does not end\n" + self.log.read_text()) from None
        seconds = time.monotonic() - begin
        while group_is_alive(self.process.pid) and time.monotonic() < begin + END:
            time.sleep(0.01)
        all_seconds = None if self.kill() else time.monotonic() - begin
        step = last_step(self.folder)
        return Stop(code, seconds, all_seconds, step, steps_before, self.log.read_text())

    def kill(self) -> bool:
        """Kill remaining processes and return whether there were any."""
        left = group_is_alive(self.process.pid)
        if left:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return left


def group_is_alive(group: int) -> bool:
    """Whether a process group has a process that is not a zombie."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False


def children_of(pid: int) -> list[int]:
    """Child processes of a process."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in tasks for child in path.read_text().split()]


def last_step(folder: Path) -> int | None:
    """Step in the newest ``last.ckpt``."""
    found = sorted(folder.glob("runs/*/version_*/checkpoints/last.ckpt"), key=os.path.getmtime)
    if not found:
        return None
    path = found[-1]
    rest = read_rest(path) if is_sharded_checkpoint(path) else torch.load(path, weights_only=True)
    return int(rest["global_step"])


def write_recipe(folder: Path) -> Path:
    """Write a recipe with tiny steps and practically unlimited epochs."""
    random = np.random.default_rng(0)
    for split, count in (("train", 64), ("val", 64)):
        for name in ("a", "b"):
            (folder / "images" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / name / f"{index}.png")
    recipe = yaml.safe_load((ROOT / "configs" / "toy" / "classification.yaml").read_text())
    shape = {"channels": 8, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]}
    recipe["model"]["init_args"]["network"]["init_args"] |= shape
    data = {"root": str(folder / "images"), "image_size": 32, "batch_size": 2, "num_workers": 0}
    recipe["data"]["init_args"] |= data
    recipe["trainer"] |= {"max_epochs": 100_000, "check_val_every_n_epoch": 100_000}
    recipe["trainer"] |= {"num_sanity_val_steps": 0, "accelerator": "cpu", "log_every_n_steps": 50}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def main() -> None:
    """Print one row for each combination."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--signals", nargs="+", default=["TERM", "INT", "HUP"])
    parser.add_argument("--who", nargs="+", default=WHO, choices=WHO)
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    parser.add_argument("--strategies", nargs="+", default=["ddp", "fsdp2"])
    parser.add_argument("--torchrun", action="store_true", help="start the ranks with torchrun")
    args = parser.parse_args()
    print("| strategy | ranks | workers | signal | to | launcher [s] | all [s] | saved | code |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for strategy, ranks, workers in (
        (s, r, w)
        for r in args.ranks
        for s in (args.strategies if r > 1 else ["ddp"])
        for w in args.workers
    ):
        for name, who in ((n, w) for n in args.signals for w in args.who):
            with tempfile.TemporaryDirectory() as folder:
                row = _measure(
                    Path(folder), strategy, ranks, workers, name, who, torchrun=args.torchrun
                )
            print(f"| {strategy} | {ranks} | {workers} | {name} | {who} | {row} |", flush=True)


def _measure(
    folder: Path, strategy: str, ranks: int, workers: int, name: str, who: str, *, torchrun: bool
) -> str:
    config = str(write_recipe(folder))
    flags = ["fit", "-c", config, "--data.num_workers", str(workers)]
    if ranks > 1:
        flags += ["--trainer.strategy", strategy]
    process = Process(folder, *flags, ranks=ranks, torchrun=torchrun)
    process.wait_for("train", 5)
    stop = process.stop(who, getattr(signal, f"SIG{name}"))
    saved = "no" if stop.step is None else f"step {stop.step} of {stop.steps_before}"
    if stop.code != 130 or stop.step is None:
        print(stop.output[-3000:], file=sys.stderr)
    together = "never" if stop.all_seconds is None else f"{stop.all_seconds:.1f}"
    return f"{stop.seconds:.1f} | {together} | {saved} | {stop.code}"


if __name__ == "__main__":
    main()
