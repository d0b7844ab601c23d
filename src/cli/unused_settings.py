"""Settings of the output files of one task in a run of another."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from src.callbacks import ClassPredictionWriter, DetectionWriter, LabelMapWriter
from src.tasks import ClassificationTask, DetectionTask, SegmentationTask

_WRITERS = {
    "predictions": (ClassPredictionWriter, ClassificationTask, "classifiers"),
    "label_maps": (LabelMapWriter, SegmentationTask, "segmentors"),
    "detections": (DetectionWriter, DetectionTask, "detectors"),
}
_TASKS = tuple(task for _, task, _ in _WRITERS.values())


def warn_about_unused_writers(settings: Mapping[str, Any], task: object) -> None:
    """Warn of settings of output files that the task does not write.

    Args:
        settings: Settings of the command; those that differ from their defaults count as set.
        task: The task. One of another package may write any of the files.
    """
    if not isinstance(task, _TASKS):
        return
    for key, (writer, kind, whose) in _WRITERS.items():
        if isinstance(task, kind):
            continue
        given = settings.get(key) or {}
        for name, parameter in inspect.signature(writer).parameters.items():
            if given.get(name, parameter.default) != parameter.default:
                rank_zero_warn(
                    f"{key}.{name}={given[name]} has no effect with a {type(task).__name__}: it is"
                    f" for the results of {whose}. Leave it out."
                )
