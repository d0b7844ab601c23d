"""Third-party warnings and log messages that are suppressed, with the reason for each."""

from __future__ import annotations

import logging
import threading
import warnings
from pathlib import Path

_SOURCE = Path(__file__).resolve().parents[1]
_default_format = warnings.formatwarning
_HIDDEN_WARNINGS = (
    # Lightning uses a pytree class deprecated in torch 2.13; harmless, but shown in every run.
    r".*treespec, LeafSpec.*",
    # Lightning uses names that jsonargparse 4.49 deprecated (fixed on Lightning's main branch).
    r"[\s\S]*was deprecated in v4[\s\S]*will be removed in v5[\s\S]*",
    # Our RunFolder lowers the interval so that every epoch is logged.
    r"The number of training batches .* is smaller than the logging interval.*",
    # Frozen parts (model.freeze) stay in evaluation mode; NetworkSummary counts their parameters.
    r"Found \d+ module\(s\) in eval mode at the start of training.*",
    # EpochSeed skips the batches that were already used, so any data loader can be resumed.
    r"You're resuming from a checkpoint that ended before the epoch ended.*",
    # The recipe sets the number of workers; the start report shows the number of cores.
    r"This DataLoader will create .* worker processes in total.*",
    # pycocotools 2.0.11 with numpy 2; does not affect results.
    r"__array__ implementation doesn't accept a copy keyword.*",
    # The command line says it in a sentence of its own (warn_about_precision).
    r".*AMP with fp16 is not supported on CPU.*",
    # Each run has its own folder, which other callbacks write to first.
    r"Checkpoint directory .* exists and is not empty.*",
)
_HIDDEN_MESSAGES = (
    "litlogger",  # advertisement
    "litmodels",  # advertisement
    "TPU available",  # the start report shows the device
    "GPU available",
    "HPU available",
    "Automatic Mixed Precision (AMP)",  # the start report shows the precision
    "Skipping setting a default `ModelSummary`",  # replaced by NetworkSummary
    "Loading `train_dataloader` to estimate",  # when the schedule is set up
    "Restoring states from the checkpoint path",  # the start report shows the checkpoint
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
    "Found current_model_state in the checkpoint",  # the EMA callback restores its weights
    "`weights_only` was not set",
    "`Trainer.fit` stopped",  # the results follow
    "Seed set to",  # config.yaml has the seed
)


def quieten() -> None:
    """Suppress the messages above, and print this project's warnings without source lines."""
    warnings.formatwarning = _format_warning
    threading.excepthook = _report_thread
    for pattern in _HIDDEN_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    for name in (
        "pytorch.utilities.rank_zero",
        "fabric.utilities.rank_zero",
        "fabric.utilities.seed",
    ):
        log = logging.getLogger(f"lightning.{name}")
        if _is_worth_showing not in log.filters:
            log.addFilter(_is_worth_showing)


def _report_thread(error: threading.ExceptHookArgs) -> None:
    """Suppress errors of TensorBoard's writer thread, which the main thread raises as well."""
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
    """Format warnings of this project as one line; keep the default format for others."""
    if Path(filename).is_relative_to(_SOURCE):
        return f"warning: {message}\n"
    return _default_format(message, category, filename, lineno, line)


def _is_worth_showing(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(text in message for text in _HIDDEN_MESSAGES)
