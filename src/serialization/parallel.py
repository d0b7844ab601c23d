"""Storage reader for ``torch.distributed.checkpoint`` that does not unpickle anything.

PyTorch's planner decides which rank needs which shard. PyTorch's own reader would unpickle files in
the folder; this one reads everything through a `Folder`.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner
from torch.futures import Future

from src.serialization.folders import Entry, Folder, Piece


class RestrictedReader(FileSystemReader):
    """Reader of a folder for ``torch.distributed.checkpoint.load``.

    Args:
        folder: The validated folder.
    """

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder.path)
        self.folder = folder

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Metadata of the folder as PyTorch classes."""
        entries = self.folder.entries
        return Metadata(
            state_dict_metadata={key: _described(entry) for key, entry in entries.items()},
            planner_data={key: entry.path for key, entry in entries.items()},
            storage_data={
                _index(key, entry, piece): piece
                for key, entry in entries.items()
                for piece in entry.pieces
            },
            storage_meta=StorageMeta(load_id=self.load_id),
        )

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the items of a plan."""
        for item in plan.items:
            key, piece = item.storage_index.fqn, self.storage_data[item.storage_index]
            if item.type == LoadItemType.BYTE_IO:
                # The planner unpickles these bytes, so they are written here from validated values.
                written = io.BytesIO()
                torch.save(self.folder.value(key), written)
                written.seek(0)
                planner.load_bytes(item, written)
                continue
            values = self.folder.piece(key, piece)
            for dimension, (offset, length) in enumerate(
                zip(item.storage_offsets, item.lengths, strict=True)
            ):
                values = values.narrow(dimension, offset, length)
            target: Tensor = planner.resolve_tensor(item).detach()
            if target.shape != values.shape:
                raise ValueError(
                    f"{key}: expected shape {tuple(target.shape)}, got {tuple(values.shape)}"
                )
            target.copy_(values)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done


def _described(entry: Entry) -> TensorStorageMetadata | BytesStorageMetadata:
    if entry.size is None or entry.dtype is None:
        return BytesStorageMetadata()
    chunks = [ChunkStorageMetadata(Size(p.offsets), Size(p.sizes)) for p in entry.pieces]
    return TensorStorageMetadata(TensorProperties(dtype=entry.dtype), entry.size, chunks)


def _index(key: str, entry: Entry, piece: Piece) -> MetadataIndex:
    return MetadataIndex(key, None if entry.size is None else Size(piece.offsets))
