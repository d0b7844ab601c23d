"""Hand the pieces of a checkpoint folder to ``torch.distributed.checkpoint``.

PyTorch's planner decides which process needs which piece. PyTorch's own reader would unpickle what
is in the folder; this one takes everything from a `Folder`.
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
        folder: The folder, already checked.
    """

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder.path)
        self.folder = folder

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Describe the folder in PyTorch's classes."""
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
        """Read what the plan asks for."""
        for item in plan.items:
            key, piece = item.storage_index.fqn, self.storage_data[item.storage_index]
            if item.type == LoadItemType.BYTE_IO:
                # The planner unpickles: it is given bytes that are written here.
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
                raise ValueError(f"{key} has the shape {tuple(values.shape)} in the folder")
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
