"""Loggers of a run folder: ``metrics.csv`` and TensorBoard.

Lightning's own CSV logger does not write atomically, and its TensorBoard logger expands ``~`` and
``$`` in folder names. These loggers write to the run folder, and a full disk never leaves
incomplete lines in the table.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from src import files


def default_loggers(folder: Path, others: Sequence[Logger] = ()) -> list[Logger]:
    """Loggers of a run folder; a logger of the same kind among ``others`` replaces one."""
    loggers: list[Logger] = []
    if not any(isinstance(logger, CSVLogger) for logger in others):
        loggers.append(MetricsTable(folder))
    if not any(isinstance(logger, TensorBoardLogger) for logger in others):
        loggers.append(Curves(folder))
    return loggers


class MetricsTable(CSVLogger):
    """Write ``metrics.csv`` and ``hparams.yaml``.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.parent, "", folder.name)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer, created on first use."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment  # type: ignore[return-value]


class _Writer(ExperimentWriter):
    """Appends complete lines to the table, and rewrites it if there are new columns."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._written_keys: list[str] | None = None

    def save(self) -> None:
        """Write the recorded metrics."""
        if not self.metrics:
            return
        self._record_new_keys()
        path, keys = Path(self.metrics_file_path), list(self.metrics_keys)
        rows = [[row.get(key, "") for key in keys] for row in self.metrics]
        if keys == self._written_keys and path.is_file():
            buffer = io.StringIO(newline="")
            csv.writer(buffer).writerows(rows)
            files.append_text(path, buffer.getvalue())
        else:
            files.write_csv(path, [keys, *self._earlier_rows(path, keys), *rows])
            self._written_keys = keys
        self.metrics = []

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write the settings."""
        self.hparams.update(params)
        with files.whole_file(Path(self.log_dir) / self.NAME_HPARAMS_FILE) as part:
            save_hparams_to_yaml(part, self.hparams)

    def _earlier_rows(self, path: Path, keys: list[str]) -> list[list[str]]:
        if self._written_keys is None or not path.is_file():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            rows = [dict(zip(self._written_keys, row, strict=False)) for row in csv.reader(file)]
        return [[row.get(key, "") for key in keys] for row in rows[1:]]


class Curves(TensorBoardLogger):
    """Write TensorBoard events.

    TensorBoard appends to an open file. A full disk can therefore truncate the last event, which
    its reader skips.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.parent, "", folder.name)
        self._folder = folder

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return str(self._folder)

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer, created on first use."""
        with self._disk_errors():
            return super().experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics."""
        with self._disk_errors():
            super().log_metrics(metrics, step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Log the settings."""
        with self._disk_errors():
            super().log_hyperparams(*args, **kwargs)

    def save(self) -> None:
        """Flush the events; `MetricsTable` writes the settings."""
        with self._disk_errors():
            if self._experiment is not None:
                self._experiment.flush()

    def finalize(self, status: str) -> None:
        """Close the file."""
        try:
            with self._disk_errors():
                super().finalize(status)
        except files.NotWrittenError:
            if status == "success":  # otherwise another error is being raised
                raise

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Lightning wraps OS errors in a ValueError
            cause = files.os_error_in(error)
            if cause is None:
                raise
            raise files.NotWrittenError(self._folder / "events.out.tfevents", cause) from error
