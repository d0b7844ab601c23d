"""Lines of a log file: metrics where they were measured, speed, and the time left."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from src.callbacks.metric_text import percent
from src.callbacks.pace import Pace, readable_time
from src.callbacks.progress import LogProgress, NotebookProgress, TerminalProgress
from src.cli import main
from src.tasks import ClassificationTask


def fit(recipe: Path, runs: Path, *arguments: str) -> int:
    return main(["fit", "-c", str(recipe), "--trainer.default_root_dir", str(runs), *arguments])


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """The progress lines printed since the last call."""
    return lambda: [x for x in capsys.readouterr().out.splitlines() if x.startswith("epoch ")]


def test_metrics_are_on_the_line_where_they_were_measured(
    write_recipe: Callable[..., Path], tmp_path: Path, lines: Callable[[], list[str]]
) -> None:
    flags = ["--trainer.max_epochs", "4", "--trainer.check_val_every_n_epoch", "2"]
    assert fit(write_recipe(tmp_path), tmp_path, *flags) == 0
    epochs = lines()
    assert [line.split()[1] for line in epochs] == ["0/3", "1/3", "2/3", "3/3"]
    percents = [re.search(r"  val/top1 \d+\.\d%  ", line) is not None for line in epochs]
    assert percents == [False, True, False, True]
    assert all(re.search(r"  lr \S+  \d+\S* images/s", line) for line in epochs)
    assert [" left" in line for line in epochs] == [True, True, True, False]


def test_validations_within_an_epoch_have_their_own_line(
    write_recipe: Callable[..., Path], tmp_path: Path, lines: Callable[[], list[str]]
) -> None:
    flags = ["--trainer.max_epochs", "2", "--trainer.val_check_interval", "2"]
    assert fit(write_recipe(tmp_path), tmp_path, *flags) == 0
    first, end, second, last = lines()
    assert first.startswith("epoch 0/1  step 2/3")
    assert second.startswith("epoch 1/1  step 2/3")
    # The last weights are validated as well.
    assert ["val/top1" in line for line in (first, end, second, last)] == [True, False, True, True]


def test_time_of_an_epoch_that_was_resumed(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    lines: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = write_recipe(tmp_path)
    step = ClassificationTask.training_step

    def fail_in_the_second_step(task: ClassificationTask, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            raise RuntimeError("stopped")
        return step(task, batch, batch_idx)

    with monkeypatch.context() as broken:
        broken.setattr(ClassificationTask, "training_step", fail_in_the_second_step)
        assert fit(recipe, tmp_path) == 1
    lines()
    assert fit(recipe, tmp_path, "--ckpt_path", "last") == 0
    rest, whole = lines()
    found = re.match(r"epoch 0/1  (\d+\.\d) s since the resume  ", rest)
    assert found is not None
    assert float(found[1]) < 60
    assert re.match(r"epoch 1/1  \d+\.\d s  ", whole)


def test_an_epoch_that_was_finished_before_the_resume_has_no_line(
    write_recipe: Callable[..., Path], tmp_path: Path, lines: Callable[[], list[str]]
) -> None:
    recipe = write_recipe(tmp_path)
    steps = ["--trainer.max_epochs", "4", "--trainer.max_steps"]
    assert fit(recipe, tmp_path, *steps, "3") == 0  # an epoch
    lines()
    assert fit(recipe, tmp_path, *steps, "9", "--ckpt_path", "last") == 0
    assert [line.split("  ")[0] for line in lines()] == ["epoch 1/2", "epoch 2/2"]


def test_a_score_without_objects_is_shown_as_missing() -> None:
    assert (percent(0.8333), percent(0.0), percent(float("nan"))) == ("83.3%", "0.0%", "-")


@pytest.mark.parametrize("bars", [TerminalProgress, NotebookProgress])
def test_bars_show_speed_and_time_left(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bars: type[TerminalProgress | NotebookProgress],
) -> None:
    shown: list[dict[str, Any]] = []

    class Recorded(bars):  # type: ignore[misc, valid-type]
        def get_metrics(self, *args: Any) -> Any:
            shown.append(super().get_metrics(*args))
            return shown[-1]

    monkeypatch.setattr("src.cli.app.default_progress", Recorded)
    assert fit(write_recipe(tmp_path), tmp_path) == 0
    assert {"train/loss", "lr", "images/s", "left"} <= shown[1].keys()
    assert "val/top1" not in shown[1]
    assert {"val/top1", "lr", "images/s"} <= shown[-1].keys()


@pytest.mark.parametrize("command", ["predict", "validate"])
def test_the_lines_of_a_long_evaluation_end_with_its_last_batch(
    trained: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.setattr(LogProgress, "_is_due", lambda _: True)
    flags = ["--data.predict_dir", str(images / "val" / "red")] * (command == "predict")
    checkpoint = next(trained.rglob("last.ckpt"))
    where = ["--ckpt_path", str(checkpoint), "--trainer.default_root_dir", str(tmp_path)]
    assert main([command, *where, "--data.eval_batch_size", "2", *flags]) == 0
    text = capsys.readouterr().out
    verb, count = ("predicted", 2) if command == "predict" else ("validated", 6)
    lines = re.findall(rf"{verb} (\S+) batches(?:  (.*) left)?", text)
    assert [line[0] for line in lines] == [f"{n + 1}/{count}" for n in range(count)]
    assert [bool(line[1]) for line in lines] == [True] * (count - 1) + [False]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until ``now`` is changed."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    return clock


def trainer_at(epoch: int, batch: int) -> SimpleNamespace:
    progress = SimpleNamespace(current=SimpleNamespace(ready=batch))
    epoch_loop = SimpleNamespace(batch_progress=progress)
    return SimpleNamespace(
        max_epochs=3,
        max_steps=-1,
        num_training_batches=4,
        current_epoch=epoch,
        fit_loop=SimpleNamespace(epoch_loop=epoch_loop),
    )


def test_speed_is_without_validation_and_time_left_is_with_it(clock: SimpleNamespace) -> None:
    pace = Pace()
    pace.start_epoch()
    clock.now += 5  # workers start
    pace.add(8)
    assert pace.images_per_second == 8 / 5
    for _ in range(3):
        clock.now += 1
        pace.add(8)
    assert pace.images_per_second == 8
    clock.now += 4  # validation
    pace.pause()
    assert pace.images_per_second == 8
    assert pace.epoch_time == "12.0 s"
    assert pace.seconds_left(trainer_at(epoch=0, batch=4)) == pytest.approx(8 * 7 / 3)
    assert pace.seconds_left(trainer_at(epoch=2, batch=4)) is None


def test_durations_are_readable() -> None:
    durations = {4: "4 s", 59.7: "1 min", 700: "12 min", 7300: "2 h 2 min", 190000: "2 d 5 h"}
    assert [readable_time(seconds) for seconds in durations] == list(durations.values())
