"""metrics.csv and TensorBoard events of a run folder."""

import csv
import errno
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from src.callbacks.loggers import Curves, MetricsTable, default_loggers
from src.cli import main
from src.files import NotWrittenError
from tests.callbacks.recorder import Recorder

Limit = Callable[[int], AbstractContextManager[None]]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_new_columns_and_new_rows(tmp_path: Path) -> None:
    logger = MetricsTable(tmp_path / "run" / "version_0")
    for step, metrics in enumerate([{"a": -1.5}, {"a": 2.0}, {"b": 3.0}, {"a": 4.0, "=c": 5.0}]):
        logger.log_metrics(metrics, step)
        logger.save()
    rows = rows_of(tmp_path / "run" / "version_0" / "metrics.csv")
    assert [row["a"] for row in rows] == ["-1.5", "2.0", "", "4.0"]
    assert [row["b"] for row in rows] == ["", "", "3.0", ""]
    assert [row["'=c"] for row in rows] == ["", "", "", "5.0"]
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("key", ["a", "b"])  # a new row, a new column
def test_a_full_disk_leaves_the_earlier_lines(
    tmp_path: Path, largest_file: Limit, key: str
) -> None:
    logger, path = MetricsTable(tmp_path / "version_0"), tmp_path / "version_0" / "metrics.csv"
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    before = path.read_bytes()
    logger.log_metrics({key: 0.123456789}, 1)
    with largest_file(len(before) + 3), pytest.raises(NotWrittenError, match=r"metrics.csv could"):
        logger.save()
    assert path.read_bytes() == before
    logger.save()  # there is enough space again
    assert rows_of(path)[1][key] == "0.123456789"


def test_events_are_in_the_run_folder_for_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "$HOME" / "~"
    logger = Curves(folder)
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    logger.finalize("success")
    assert [path.name.split(".")[0] for path in folder.iterdir()] == ["events"]


def test_a_full_disk_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = Curves(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(logger.experiment, "add_scalar", full)
    with pytest.raises(NotWrittenError, match="No space left on device; free some disk space"):
        logger.log_metrics({"a": 1.0}, 0)
    monkeypatch.setattr(logger.experiment, "flush", full)
    with pytest.raises(NotWrittenError, match=r"events.out.tfevents could not be written"):
        logger.finalize("success")
    logger.finalize("failed")  # during another error


@pytest.mark.parametrize("flag", ["--trainer.logger+=", "--trainer.logger="])
def test_given_loggers_are_added_to_those_of_the_run_folder(
    tmp_path: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.setattr(Recorder, "seen", {})
    fit = ["fit", "-c", str(write_recipe(tmp_path)), "--trainer.max_epochs", "1"]
    where = ["--trainer.default_root_dir", str(tmp_path / "runs")]
    assert main([*fit, *where, f"{flag}tests.callbacks.recorder.Recorder"]) == 0
    assert "val/top1" in Recorder.seen
    (row,) = (r for r in rows_of(tmp_path / "runs/tiny/version_0/metrics.csv") if r["val/top1"])
    assert float(row["val/top1"]) == pytest.approx(Recorder.seen["val/top1"])
    assert list((tmp_path / "runs/tiny/version_0").glob("events.out.*"))


def test_a_logger_of_the_same_kind_replaces_the_default(tmp_path: Path) -> None:
    own = CSVLogger(tmp_path)
    assert [type(logger) for logger in default_loggers(tmp_path, [own])] == [Curves]
    assert [type(logger) for logger in default_loggers(tmp_path)] == [MetricsTable, Curves]


def test_a_logger_that_cannot_be_created_is_one_sentence(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loggers = [f"--trainer.logger+=tests.callbacks.recorder.{n}" for n in ("Recorder", "Refusing")]
    assert main(["fit", "-c", str(trained / "tiny.yaml"), *loggers]) == 2
    error = capsys.readouterr().err
    assert error.endswith(": The tracking server does not exist.\n")
    assert error.count("\n") == 1
