"""Settings that have no effect in a command or with its task."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from src.callbacks import (
    ClassPredictionWriter,
    DetectionWriter,
    LabelMapWriter,
    PanopticWriter,
)
from src.cli.arguments import option
from src.tasks import ClassificationTask, DetectionTask, SegmentationTask

_WRITERS = {
    "predictions": (ClassPredictionWriter, ClassificationTask, "classifiers"),
    "label_maps": (LabelMapWriter, SegmentationTask, "segmentors"),
    "panoptic": (PanopticWriter, SegmentationTask, "segmentors"),
    "detections": (DetectionWriter, DetectionTask, "detectors"),
}
_ALWAYS_USED = ("detections.folder",)
"""Settings of files that ``validate`` and ``test`` write, too."""
_TASKS = tuple(task for _, task, _ in _WRITERS.values())


def warn_about_unused_settings(
    settings: Mapping[str, Any], task: object, command: Sequence[str]
) -> None:
    """Warn of settings that have no effect.

    Args:
        settings: Settings of the command.
        task: The task.
        command: The command line.
    """
    _warn_about_batch_size(settings, command)
    _warn_about_writers(settings, task, command)


def _warn_about_batch_size(settings: Mapping[str, Any], command: Sequence[str]) -> None:
    """Warn of the batch size of training in a command that has another one."""
    given = option(command, "--data.batch_size")
    if given is None or {"validate", "test", "predict"}.isdisjoint(command[1:2]):
        return
    used = ((settings.get("data") or {}).get("init_args") or {}).get("eval_batch_size")
    if used is not None and str(used) != given:  # null is the batch size of training
        rank_zero_warn(
            f"data.batch_size={given} has no effect in {command[1]}, which takes"
            f" data.eval_batch_size={used} images at once. Set --data.eval_batch_size instead."
        )


def _warn_about_writers(settings: Mapping[str, Any], task: object, command: Sequence[str]) -> None:
    """Warn of settings of output files that the task or the command does not write.

    Args:
        settings: Settings of the command; those that differ from their defaults count as set, and
            of the command line all.
        task: The task. One of another package may write any of the files.
        command: The command line. Settings of a recipe are for all of its commands, so that
            ``validate`` and ``test`` warn of its options only.
    """
    if not isinstance(task, _TASKS):
        return
    is_evaluation = not {"validate", "test"}.isdisjoint(command[1:2])
    for key, (writer, kind, whose) in _WRITERS.items():
        given = settings.get(key) or {}
        for name, parameter in inspect.signature(writer).parameters.items():
            setting, value = f"{key}.{name}", given.get(name, parameter.default)
            if not isinstance(task, kind):
                if value != parameter.default or option(command, f"--{setting}"):
                    rank_zero_warn(
                        f"{setting}={value} has no effect with a {type(task).__name__}: it is"
                        f" for the results of {whose}. Leave it out."
                    )
            elif is_evaluation and setting not in _ALWAYS_USED and option(command, f"--{setting}"):
                rank_zero_warn(
                    f"{setting}={value} has no effect in {command[1]} and changes no metric: it is"
                    " for the files that predict writes. Leave it out."
                )
