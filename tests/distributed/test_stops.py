"""Signals to the main process, one or all ranks: one checkpoint, exit code 130, no processes left.

``python -m tests.distributed.stops`` measures how long it takes.
"""

import signal
import time
from pathlib import Path

import pytest

from tests.distributed.stops import END, Process, last_step, write_recipe

MORE = 3  # steps of the resumed run


def fit(recipe: Path, ranks: int, strategy: str = "ddp", workers: int = 0) -> list[str]:
    flags = ["fit", "-c", str(recipe), "--data.num_workers", str(workers)]
    return flags + (["--trainer.strategy", strategy] if ranks > 1 else [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "strategy", "workers", "who", "number"),
    [
        (1, "ddp", 2, "group", signal.SIGTERM),
        (1, "ddp", 2, "main", signal.SIGHUP),
        (2, "ddp", 2, "group", signal.SIGINT),
        (2, "ddp", 0, "main", signal.SIGTERM),
        (2, "fsdp2", 1, "group", signal.SIGTERM),
        (2, "fsdp2", 0, "last rank", signal.SIGTERM),
        (2, "ddp", 0, "last rank", signal.SIGHUP),
        (4, "ddp", 0, "main", signal.SIGTERM),
        (4, "fsdp2", 0, "ranks", signal.SIGHUP),
    ],
)
def test_all_ranks_stop_and_save_together(
    tmp_path: Path, ranks: int, strategy: str, workers: int, who: str, number: int
) -> None:
    recipe = write_recipe(tmp_path)
    process = Process(tmp_path, *fit(recipe, ranks, strategy, workers), ranks=ranks)
    process.wait_for("train", 3)
    stop = process.stop(who, number)
    assert stop.code == 130, stop.output
    assert stop.all_seconds is not None
    assert "Traceback" not in stop.output
    assert stop.step is not None
    assert stop.step >= stop.steps_before
    if ranks == 2:
        end = ["--ckpt_path", "last", "--trainer.max_epochs", "-1"]
        end += ["--trainer.max_steps", str(stop.step + MORE)]
        rest = Process(tmp_path, *fit(recipe, ranks, strategy, workers), *end, ranks=ranks)
        assert rest.process.wait(300) == 0, rest.log.read_text()
        assert last_step(tmp_path) == stop.step + MORE


@pytest.mark.slow
@pytest.mark.parametrize("who", ["group", "last rank"])
def test_ranks_of_torchrun_stop_and_save_together(tmp_path: Path, who: str) -> None:
    process = Process(tmp_path, *fit(write_recipe(tmp_path), 2), ranks=2, torchrun=True)
    process.wait_for("train", 3)
    stop = process.stop(who, signal.SIGTERM)
    assert stop.code != 0  # exit code of torchrun
    assert stop.all_seconds is not None
    assert stop.step is not None, stop.output
    assert stop.step >= stop.steps_before


@pytest.mark.slow
def test_ranks_stop_in_a_validation(tmp_path: Path) -> None:
    often = ["--trainer.val_check_interval", "4", "--trainer.check_val_every_n_epoch", "null"]
    flags = [*fit(write_recipe(tmp_path), 2), *often, "--data.eval_batch_size", "1"]
    process = Process(tmp_path, *flags, ranks=2)
    process.wait_for("val", 3)
    stop = process.stop("last rank", signal.SIGTERM)
    assert stop.code == 130, stop.output
    assert stop.step is not None
    assert stop.step >= 4


@pytest.mark.slow
@pytest.mark.parametrize("who", ["main", "last rank"])
def test_ranks_stop_before_they_train(tmp_path: Path, who: str) -> None:
    flags = ["--trainer.num_sanity_val_steps", "-1", "--data.eval_batch_size", "1"]
    process = Process(tmp_path, *fit(write_recipe(tmp_path), 2), *flags, ranks=2)
    process.wait_for("val", 1)
    stop = process.stop(who, signal.SIGTERM)
    assert stop.code == 130, stop.output
    assert stop.step is None
    assert "Nothing was saved" in stop.output


@pytest.mark.slow
def test_a_second_signal_ends_a_run_that_cannot_stop(tmp_path: Path) -> None:
    stuck = ["--trainer.callbacks+=tests.distributed.stops.Stuck"]
    process = Process(tmp_path, *fit(write_recipe(tmp_path), 1, workers=2), *stuck)
    process.wait_for_output("stuck")
    begin = time.monotonic()
    while process.process.poll() is None and time.monotonic() - begin < END:
        process.send("main", signal.SIGINT)
        time.sleep(1)  # signals in quick succession are treated as one
    stop = process.wait(0, begin)
    assert stop.code == 130, stop.output
    assert stop.all_seconds is not None
    assert "second signal" in stop.output
