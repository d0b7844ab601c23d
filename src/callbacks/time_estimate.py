"""How long training will take, from its first steps, and the options of a short trial."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from src.callbacks.pace import readable_time, remaining_batches
from src.callbacks.run_folder import is_dry_run, run_folder, tell
from src.file_names import quoted
from src.optim import StepSchedule
from src.runs import TRIAL
from src.tasks import DetectionTask

_ONE_THREAD = "OMP_NUM_THREADS=1"
_COMMANDS = ("fit", "validate", "test", "predict")
_PROC = Path("/proc")
_WINDOW = 0.5  # seconds in which other programs are measured
_BUSY = 0.75  # cores; a program that computes with one thread uses nearly one
_STEPS = 10  # of which the first is left out: workers start, memory is allocated
_SHORT = 60.0  # seconds; nobody stops a shorter run to start it again
_FEW_STEPS, _PATIENCE = 4, 30.0  # enough after so many seconds
_LONG = 15 * 60.0  # seconds of training on a CPU from which a short trial is suggested
_TRIAL_EPOCHS = 2  # at least, if they do not take longer than _TRIAL
_TRIAL = 5 * 60.0  # seconds
_USEFUL_TRIAL = 3 * 60.0  # seconds; a trial of short epochs has more of them
_SLOWER = 2  # times the estimated time of a step, from which the CPU is measured again
_FASTER = 3  # times that one thread is, cautiously, if other programs use the CPU


class TimeEstimate(Callback):
    """Print after the first steps how long training will take.

    The time is that of the steps with data loading, without validation. On a CPU, the options of a
    short trial follow if training takes long, and a note if other programs use the CPU and training
    takes more than a minute. Without the note, the estimate is printed once more if steps take more
    than twice as long later and other programs use the CPU then. Nothing is printed in a
    ``fast_dev_run``, with ``max_time``, or if the length of training is unknown. Evaluation and
    prediction print the note after half a minute, if more than a minute remains.
    """

    def __init__(self) -> None:
        self._is_waiting = self._is_resumed = False
        self._seconds: list[float] = []
        self._previous, self._note = 0.0, ""
        self._step = 0.0  # seconds that were estimated; 0 if they are not compared with later steps
        self._evaluated, self._evaluation_start = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to measure."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        has_limit = any(isinstance(callback, Timer) for callback in callbacks)
        self._is_waiting = not has_limit and not is_dry_run(trainer)
        self._is_resumed = trainer.global_step > 0
        self._note = busy_note(trainer, "training") if self._is_waiting else ""
        self._step = 0.0
        self._seconds, self._previous = [], time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to measure `validate`."""
        self._start_evaluation()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to measure `test`."""
        self._start_evaluation()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to measure `predict`."""
        self._start_evaluation()

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Print the note of a long `validate`."""
        if trainer.state.fn == "validate":
            self._note_if_long(trainer, trainer.num_val_batches, "validation")

    def on_test_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Print the note of a long `test`."""
        self._note_if_long(trainer, trainer.num_test_batches, "the test")

    def on_predict_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Print the note of a long `predict`."""
        self._note_if_long(trainer, trainer.num_predict_batches, "prediction")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out what happens between two epochs."""
        self._previous = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out a validation within an epoch."""
        self._previous = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure a step; print the estimate if there are enough, again if they become slow."""
        if not self._is_waiting and not self._step:
            return
        now = time.monotonic()
        self._seconds.append(now - self._previous)
        self._previous = now
        if self._is_waiting:
            self._estimate(trainer)
        elif sum(self._seconds) >= _PATIENCE:
            self._compare(trainer)

    def _estimate(self, trainer: Trainer) -> None:
        count = len(self._seconds)
        if count < _FEW_STEPS or (count < _STEPS and sum(self._seconds) < _PATIENCE):
            return
        self._is_waiting = False
        step, self._seconds = statistics.median(self._seconds[1:]), []
        if remaining := int(remaining_batches(trainer) or 0):
            steps = remaining + count
            note = self._note if step * steps >= _SHORT else ""
            self._tell(trainer, step, steps, note, is_rest=self._is_resumed)
            self._step = 0.0 if note else step

    def _compare(self, trainer: Trainer) -> None:
        """Print the estimate once more if other programs have made the last steps slow."""
        step, self._seconds = statistics.median(self._seconds), []
        remaining = int(remaining_batches(trainer) or 0)
        if step <= _SLOWER * self._step or step * remaining < _SHORT:
            return
        note = busy_note(trainer, "training", resumes=True)
        self._previous = time.monotonic()
        if note:
            self._step = 0.0
            self._tell(trainer, step, remaining, note, is_rest=True)

    def _tell(self, trainer: Trainer, step: float, steps: int, note: str, *, is_rest: bool) -> None:
        seconds = step * steps
        kind = "the remaining " if is_rest else ""
        each = f"{step:.2g}" if step < 10 else f"{step:.0f}"
        tell(
            f"Time:        about {readable_time(seconds)} for {kind}{_length(trainer, steps)}"
            f" ({each} s a step, validation not counted)"
        )
        if note:
            tell(f"             {note}")
        if seconds > _LONG and not self._is_resumed and trainer.strategy.root_device.type == "cpu":
            _tell_trial(trainer, step, is_busy=bool(note))

    def _start_evaluation(self) -> None:
        self._evaluated, self._evaluation_start = 0, time.monotonic()

    def _note_if_long(self, trainer: Trainer, batches: Sequence[int | float], what: str) -> None:
        """Print the note once, after `_PATIENCE`, if more than `_SHORT` remains."""
        passed = time.monotonic() - self._evaluation_start
        self._evaluated += 1
        if passed < _PATIENCE or is_dry_run(trainer):
            return
        self._evaluation_start = math.inf  # measured once
        remains = passed * (sum(batches) / self._evaluated - 1)
        if remains > _SHORT and (note := busy_note(trainer, what)):
            tell(f"Note:        {note}")


def _tell_trial(trainer: Trainer, step: float, *, is_busy: bool) -> None:
    # With one thread, a step on a busy CPU takes less time than these have taken.
    is_faster = is_busy and sys.argv[1:2] == ["fit"]
    fastest = step / _FASTER if is_faster else step
    options, batches = trial_options(trainer, fastest)
    command = trial_command(sys.argv[1:], options)
    few = isinstance(trainer.lightning_module, DetectionTask)
    scores = " (its detections usually score below 0.3, so none are drawn)" if few else ""
    if is_faster:
        command = f"{_ONE_THREAD} {command}"
    length = _range(batches * fastest, batches * step)
    tell(
        f"             For a short trial of {length}, which shows that all works{scores}: {command}"
    )


def busy_note(trainer: Trainer, what: str, *, resumes: bool = False) -> str:
    """What to do if other programs use the CPU that a command needs; else empty.

    Args:
        trainer: Its device is the CPU or another one.
        what: What becomes slow.
        resumes: Whether the command resumes from the last checkpoint instead of starting again.
    """
    has_one_thread = torch.get_num_threads() == 1
    if trainer.strategy.root_device.type != "cpu" or has_one_thread or trainer.world_size > 1:
        return ""  # other ranks are no other programs
    others = busy_cores()
    if others < _BUSY:
        return ""
    options = ["--ckpt_path", "last"] if resumes else []
    if sys.argv[1:2] and sys.argv[1] in _COMMANDS:
        command = f"{_ONE_THREAD} {_command(sys.argv[1:], options)}"
        advice = f"{'resume' if resumes else 'run'} it with one thread (docs/faq.md): {command}"
    else:  # a script or notebook
        advice = f"put {_ONE_THREAD} before the command (docs/faq.md)."
    return (
        f"Other programs use {others:.1f} of the {os.cpu_count()} cores of this computer, which can"
        f" make {what} several times slower. If it is slow, stop it and {advice}"
    )


def busy_cores() -> float:
    """Cores that other programs use, measured for half a second; 0 on other systems than Linux.

    Load averages would contain what the user's earlier commands have computed in the last minutes.
    """
    if not (_PROC / "stat").is_file():
        return 0.0
    before = _cpu_times()
    time.sleep(_WINDOW)
    busy, own, total = (new - old for new, old in zip(_cpu_times(), before, strict=True))
    return max(0, busy - own) / max(1, total) * (os.cpu_count() or 1)


def _cpu_times() -> tuple[int, int, int]:
    """CPU time in clock ticks: of all programs, of this one with its workers, and with idle time.

    Source: the manual pages proc_stat(5) and proc_pid_stat(5).
    """
    first_line = (_PROC / "stat").read_text().partition("\n")[0]
    user, nice, system, idle, waiting, irq, softirq, *_ = map(int, first_line.split()[1:])
    busy = user + nice + system + irq + softirq
    own = 0
    for pid in (os.getpid(), *(worker.pid for worker in multiprocessing.active_children())):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a worker has just ended
            # The name of a program, in parentheses, may contain spaces.
            fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            own += int(fields[11]) + int(fields[12])  # user and system
    return busy, own, busy + idle + waiting


def _length(trainer: Trainer, steps: int) -> str:
    """The length of training in epochs, or in steps if it is not a number of whole epochs."""
    per_epoch = trainer.num_training_batches
    if not math.isfinite(per_epoch) or steps % per_epoch:
        return f"{steps} steps"
    epochs = steps // int(per_epoch)
    unit = "steps" if per_epoch > 1 else "step"
    return f"{epochs} epoch{'s' * (epochs > 1)} of {per_epoch} {unit}"


def _range(shortest: float, longest: float) -> str:
    """A duration, or two of them if they differ: ``about 3 min``, ``2 min to 8 min``."""
    first, last = readable_time(shortest), readable_time(longest)
    return f"about {first}" if first == last else f"{first} to {last}"


def trial_options(trainer: Trainer, step: float) -> tuple[list[str], int]:
    """Options that make a run short enough to try it, with a warm-up of at most a quarter of it.

    Args:
        trainer: Trainer of the long run.
        step: Seconds of a batch in the trial.

    Returns:
        The options, and the number of batches of the trial.
    """
    accumulated, per_epoch = trainer.accumulate_grad_batches, trainer.num_training_batches
    if _TRIAL_EPOCHS * per_epoch * step <= _TRIAL:
        some = min((trainer.max_epochs or 0) // 4, int(_USEFUL_TRIAL / step / per_epoch))
        epochs = max(_TRIAL_EPOCHS, some)
        steps = epochs * math.ceil(per_epoch / accumulated)
        options = ["--trainer.max_epochs", str(epochs)]
        batches = epochs * int(per_epoch)
    else:
        steps = max(1, int(_TRIAL / step / accumulated))
        options = ["--trainer.max_steps", str(steps)]
        batches = steps * accumulated
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    if any(isinstance(s, StepSchedule) and s.num_warmup_steps > steps // 4 for s in schedules):
        options += ["--model.lr_scheduler.warmup_steps", str(steps // 10)]
    return [*options, "--name", f"{run_folder(trainer).parent.name}{TRIAL}"], batches


def trial_command(given: Sequence[str], options: Sequence[str]) -> str:
    """The command of a short trial.

    Args:
        given: Arguments of the command line; other than those of ``fit`` in a script or notebook.
        options: Alternating names and values, which replace the given ones.
    """
    if given[:1] != ["fit"]:
        return f"add {' '.join(map(quoted, options))}"
    return _command(given, options)


def _command(given: Sequence[str], options: Sequence[str]) -> str:
    """The command of this run with other options, alternating names and values."""
    kept: list[str] = []
    arguments = iter(given)
    for argument in arguments:
        if argument in options[::2]:
            next(arguments, None)  # its value
        elif argument.partition("=")[0] not in options[::2]:
            kept.append(argument)
    return " ".join(map(quoted, ["python", "-m", "src", *kept, *options]))
