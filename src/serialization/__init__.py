"""Read untrusted files: weights, checkpoints, checkpoint folders and JSON configurations.

Nothing in a file is executed or imported, memory is limited by the size of the file, and problems
are reported as one-line errors. The rest of the project reads such files only through this package
(``tests/serialization/test_single_reader.py``).
"""

from src.serialization.checkpoint import (
    REST,
    check_checkpoint,
    check_finite,
    check_optimizer_groups,
    check_optimizer_state,
    flat_state,
    read_checkpoint,
    read_entries,
    read_rest,
    refuse_not_finite,
)
from src.serialization.files import read_json, read_weights, shard_names
from src.serialization.folders import Folder
from src.serialization.limits import NAME_LENGTH, shown, shown_repr
from src.serialization.tensors import Odd, first_not_finite, odd_kind

__all__ = [
    "NAME_LENGTH",
    "REST",
    "Folder",
    "Odd",
    "check_checkpoint",
    "check_finite",
    "check_optimizer_groups",
    "check_optimizer_state",
    "first_not_finite",
    "flat_state",
    "odd_kind",
    "read_checkpoint",
    "read_entries",
    "read_json",
    "read_rest",
    "read_weights",
    "refuse_not_finite",
    "shard_names",
    "shown",
    "shown_repr",
]
