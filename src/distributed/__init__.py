"""Sharded networks and checkpoints in plain PyTorch, without Lightning."""

from src.distributed.checkpoints import (
    consolidate,
    describe_mismatch,
    is_sharded_checkpoint,
    shapes_of,
)
from src.distributed.sharding import (
    copy_network,
    forwards_behind,
    is_sharded,
    load_whole,
    materialise,
    shard,
    tensors_of,
)

__all__ = [
    "consolidate",
    "copy_network",
    "describe_mismatch",
    "forwards_behind",
    "is_sharded",
    "is_sharded_checkpoint",
    "load_whole",
    "materialise",
    "shapes_of",
    "shard",
    "tensors_of",
]
