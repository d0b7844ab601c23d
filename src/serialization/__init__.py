"""Reading files of strangers: weights, checkpoints, checkpoint folders, descriptions in json.

One policy for all of them: nothing in a file is executed, nothing is imported because a file names
it, memory is taken only for what the file holds, and whatever cannot be read is one sentence. The
rest of the project reads such files through this room alone (``tests/serialization/test_door.py``).
"""

from src.serialization.checkpoint import (
    REST,
    check_checkpoint,
    check_finite,
    check_optimizer_groups,
    check_optimizer_state,
    flat_state,
    read_checkpoint,
    read_rest,
    refuse_not_finite,
)
from src.serialization.files import read_json, read_weights, shard_names
from src.serialization.folders import Folder
from src.serialization.limits import NAME_LENGTH, shown
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
    "read_json",
    "read_rest",
    "read_weights",
    "refuse_not_finite",
    "shard_names",
    "shown",
]
