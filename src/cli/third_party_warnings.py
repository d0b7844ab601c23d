"""Messages of other packages that say nothing to the user of this one. Each has its reason."""

from __future__ import annotations

import logging
import threading
import warnings
from pathlib import Path

_SOURCE = Path(__file__).resolve().parents[1]
_default_format = warnings.formatwarning
_HIDDEN_WARNINGS = (
    # Lightning's use of torch's pytree, deprecated in torch 2.13; harmless, every run shows it.
    r".*treespec, LeafSpec.*",
    # Lightning uses names that jsonargparse 4.49 deprecated (fixed on Lightning's main branch).
    r"[\s\S]*was deprecated in v4[\s\S]*will be removed in v5[\s\S]*",
    # Our RunFolder lowers the interval so that every epoch is logged.
    r"The number of training batches .* is smaller than the logging interval.*",
    # EpochSeed passes over the used batches, which makes any loader resumable.
    r"You're resuming from a checkpoint that ended before the epoch ended.*",
    # The recipe says how many processes load images; the report of a run tells the cores.
    r"This DataLoader will create .* worker processes in total.*",
    # pycocotools 2.0.11 with numpy 2; nothing of it concerns the results.
    r"__array__ implementation doesn't accept a copy keyword.*",
    # Lightning asks for `save_last` paths that a new run folder cannot have yet.
    r"Checkpoint directory .* exists and is not empty.*",
)
_HIDDEN_MESSAGES = (
    "litlogger",  # advertisement
    "litmodels",  # advertisement
    "TPU available",  # the start report names the device
    "GPU available",
    "HPU available",
    "Skipping setting a default `ModelSummary`",  # ours takes its place
    "Loading `train_dataloader` to estimate",  # an inner step of planning the schedule
    "Restoring states from the checkpoint path",  # the start report names the checkpoint
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
    "Found current_model_state in the checkpoint",  # the EMA callback restoring, as it should
    "`weights_only` was not set",
)


def quieten() -> None:
    """Hide the messages listed above, and show this project's own warnings as plain sentences."""
    warnings.formatwarning = _format_warning
    threading.excepthook = _report_thread
    for pattern in _HIDDEN_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        log = logging.getLogger(name)
        if _is_worth_showing not in log.filters:
            log.addFilter(_is_worth_showing)


def _report_thread(error: threading.ExceptHookArgs) -> None:
    """A full disk that TensorBoard's thread meets is raised in the main thread as well."""
    is_writer = type(error.thread).__name__ == "_AsyncWriterThread"
    if not (is_writer and isinstance(error.exc_value, OSError)):
        threading.__excepthook__(error)


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning about what the user set needs no line of source code; others keep it."""
    if Path(filename).is_relative_to(_SOURCE):
        return f"warning: {message}\n"
    return _default_format(message, category, filename, lineno, line)


def _is_worth_showing(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(text in message for text in _HIDDEN_MESSAGES)
