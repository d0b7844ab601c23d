"""Read checkpoint folders of ``torch.distributed.checkpoint`` without running anything in them.

``.metadata`` is a pickle of a few PyTorch classes. It lists the tensors, their shards, and the file
and byte range of each shard. It is read with the restricted unpickler of this package and validated
against the files before PyTorch's classes are created. Each shard is a file of ``torch.save``
inside a larger file.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor

from src.serialization import archives, pickles
from src.serialization.archives import Region
from src.serialization.files import as_user_error
from src.serialization.limits import (
    COMPARISONS,
    DIMENSIONS,
    PICKLE_BYTES,
    Damaged,
    Refusal,
    shown,
    shown_repr,
)
from src.serialization.pickles import Foreign, Name
from src.serialization.tensors import Meaning

METADATA = ".metadata"
_PATH_LENGTH = 16  # maximum nesting of a value
_LIST_LENGTH = 100_000
_OLD_MODULES = ("torch.distributed._shard.", "torch.distributed.checkpoint.")
_RECORDS = {
    "Metadata",
    "TensorStorageMetadata",
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "TensorProperties",
    "MetadataIndex",
    "StorageMeta",
    "_StorageInfo",
    "_MEM_FORMAT_ENCODING",
    "MEM_FORMAT_ENCODING",
}
"""Classes of ``torch.distributed`` that the metadata may contain."""


@dataclass(frozen=True)
class Piece:
    """A shard of a tensor and its location.

    Attributes:
        offsets: First index in each dimension.
        sizes: Length in each dimension.
        file: Name of the file in the folder.
        start: Offset in the file in bytes.
        length: Length in bytes.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class Entry:
    """A tensor or another value in a folder.

    Attributes:
        path: Keys of the value in the nested content.
        pieces: Shards of a tensor; a single one for other values.
        size: Shape of a tensor; ``None`` for other values.
        dtype: Dtype of a tensor.
    """

    path: tuple[str | int, ...]
    pieces: tuple[Piece, ...]
    size: Size | None = None
    dtype: torch.dtype | None = None


class _Container(dict[Any, Any]):
    """A dictionary or list of the content during construction."""


class Folder:
    """A checkpoint folder with validated metadata.

    Args:
        path: The folder.

    Raises:
        UserError: If it is damaged or contains unsupported content.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._regions: dict[str, Region] = {}
        with self.errors():
            self.entries = self._read_entries()

    def errors(self) -> Any:
        """Context manager that converts exceptions to a `UserError` about this folder."""
        return as_user_error("checkpoint", self.path, "Use an older checkpoint, or copy it again.")

    def tensor(self, key: str) -> Tensor:
        """Full tensor, merged from its shards."""
        entry = self.entries[key]
        assert entry.size is not None
        whole = torch.empty(entry.size, dtype=entry.dtype)
        for piece in entry.pieces:
            target = whole
            for dimension, (offset, size) in enumerate(
                zip(piece.offsets, piece.sizes, strict=True)
            ):
                target = target.narrow(dimension, offset, size)
            target.copy_(self.piece(key, piece))
        return whole

    def piece(self, key: str, piece: Piece) -> Tensor:
        """Values of a shard."""
        entry = self.entries[key]
        value = archives.read(self._region(piece), foreign=False, free=0)
        if not isinstance(value, Tensor):
            raise Damaged(f"{shown(key)} is not a tensor")
        if tuple(value.shape) != piece.sizes or value.dtype != entry.dtype:
            raise Damaged(
                f"a shard of {shown(key)} has {tuple(value.shape)} {value.dtype}, expected"
                f" {piece.sizes} {entry.dtype}"
            )
        return value

    def value(self, key: str) -> Any:
        """Value that is not a tensor."""
        (piece,) = self.entries[key].pieces
        value = archives.read(self._region(piece), foreign=False, free=0)
        if isinstance(value, Tensor):
            raise Damaged(f"{shown(key)} is a tensor")
        return value

    def read(self, parts: Collection[str] | None = None) -> dict[str, Any]:
        """Read entries into a nested dictionary.

        Args:
            parts: Top-level keys to read; default is all.

        Raises:
            UserError: If a shard is missing or damaged.
        """
        content = _Container()
        with self.errors():
            for key, entry in self.entries.items():
                if parts is None or entry.path[0] in parts:
                    value = self.value(key) if entry.size is None else self.tensor(key)
                    _put(content, entry.path, value)
            finished: dict[str, Any] = _finished(content)
        return finished

    # ------------------------------------------------------------- metadata

    def _read_entries(self) -> dict[str, Entry]:
        region = Region(self.path / METADATA)
        if region.size > PICKLE_BYTES:
            raise Refusal(f"its {METADATA} has {region.size:,} bytes")
        with region.open() as file:
            data = file.read()
        plain = Meaning(_NoStorages())
        content, _ = pickles.load(data, lambda name: _resolve(name, plain))
        described = _fields(content, "Metadata")
        tensors = _dictionary(described.get("state_dict_metadata"))
        pieces = self._locations(_dictionary(described.get("storage_data")))
        paths = _dictionary(described.get("planner_data") or {})
        entries = {
            key: self._entry(key, value, paths.get(key, (key,)), pieces)
            for key, value in tensors.items()
        }
        needed = sum(piece.length for entry in entries.values() for piece in entry.pieces)
        if needed > sum(region.size for region in self._regions.values()):
            raise Damaged("several of its entries have the same byte range of a file")
        return entries

    def _locations(self, locations: Mapping[Any, Any]) -> dict[Any, tuple[str, int, int]]:
        """File, offset and length by entry name and shard offsets."""
        found: dict[Any, tuple[str, int, int]] = {}
        for index, info in locations.items():
            at, location = _fields(index, "MetadataIndex"), _fields(info, "_StorageInfo")
            name: Any = location.get("relative_path")
            start: Any = location.get("offset")
            length: Any = location.get("length")
            if location.get("transform_descriptors"):
                raise Refusal("its files are compressed or encrypted")
            if not isinstance(name, str) or not _is_count(start) or not _is_count(length):
                raise Damaged(f"its {METADATA} has an invalid location")
            offset = at.get("offset")
            key = (at.get("fqn"), None if offset is None else _numbers(offset))
            if not isinstance(key[0], str):
                raise Damaged(f"its {METADATA} has a location without a name")
            self._file(name).part(start, length)  # raises if the file is too short
            found[key] = (name, start, length)
        return found

    def _entry(self, key: Any, value: Any, path: Any, locations: Mapping[Any, Any]) -> Entry:
        if not isinstance(key, str) or not key or not key.isprintable():
            raise Damaged(f"its {METADATA} has the entry {shown_repr(key)}")
        if type(path) is not tuple or not 0 < len(path) <= _PATH_LENGTH:
            raise Damaged(f"{shown(key)} has an invalid path")
        if any(not isinstance(k, str) and not (_is_count(k) and k < _LIST_LENGTH) for k in path):
            raise Damaged(f"{shown(key)} has an invalid path")
        if not isinstance(path[0], str):
            raise Damaged(f"{shown(key)} has an invalid path")
        if _is_record(value, "BytesStorageMetadata"):
            return Entry(path, (Piece((), (), *_location(locations, key, (None,))),))
        described = _fields(value, "TensorStorageMetadata")
        size, chunks = _numbers(described.get("size")), described.get("chunks")
        properties = _fields(described.get("properties"), "TensorProperties")
        dtype = properties.get("dtype")
        if not isinstance(dtype, torch.dtype) or not isinstance(chunks, list):
            raise Damaged(f"the description of {shown(key)} is invalid")
        parts = [_fields(chunk, "ChunkStorageMetadata") for chunk in chunks]
        corners = [(_numbers(p.get("offsets")), _numbers(p.get("sizes"))) for p in parts]
        _check_tiling(key, size, corners)
        pieces = tuple(
            Piece(offsets, sizes, *_location(locations, key, (offsets, None)))
            for offsets, sizes in corners
        )
        for piece in pieces:
            if math.prod(piece.sizes) * dtype.itemsize > piece.length:
                raise Damaged(f"{shown(key)} is larger than its file")
        return Entry(path, pieces, Size(size), dtype)

    def _region(self, piece: Piece) -> Region:
        return self._file(piece.file).part(piece.start, piece.length)

    def _file(self, name: str) -> Region:
        if name not in self._regions:
            path = self.path / name
            if not name or not name.isprintable() or Path(name).name != name or "\\" in name:
                raise Refusal(f"it refers to the file {shown(name)}, which is not in its folder")
            if path.resolve().parent != self.path.resolve():
                raise Refusal(f"its file {shown(name)} is a link to a file outside its folder")
            if not path.is_file():
                raise Damaged(f"its file {name} is missing")
            self._regions[name] = Region(path)
        return self._regions[name]


def _check_tiling(
    key: str, size: tuple[int, ...], pieces: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    """Check that shards cover a tensor exactly once."""
    covered = 0
    for offsets, sizes in pieces:
        if len(offsets) != len(size) or len(sizes) != len(size):
            raise Damaged(f"a shard of {shown(key)} has another number of dimensions")
        if any(o + s > n for o, s, n in zip(offsets, sizes, size, strict=True)):
            raise Damaged(f"a shard of {shown(key)} exceeds its shape {size}")
        covered += math.prod(sizes)
    if covered != math.prod(size):
        raise Damaged(f"the shards of {shown(key)} do not cover its shape {size}")
    if len({offsets for offsets, _ in pieces}) != len(pieces) or _overlap(pieces):
        raise Damaged(f"the shards of {shown(key)} overlap")


def _overlap(pieces: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Whether any two shards overlap."""
    filled = [piece for piece in pieces if math.prod(piece[1])]
    if len(filled) < 2:
        return False
    dimensions = range(len(filled[0][0]))
    best = max(dimensions, key=lambda d: len({offsets[d] for offsets, _ in filled}))
    # Along the dimension with the most splits, only few shards have to be compared.
    filled.sort(key=lambda piece: piece[0][best])
    active: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    comparisons = 0
    for offsets, sizes in filled:
        comparisons += len(active)
        if comparisons > COMPARISONS:
            raise Refusal("its tensors have too many shards")
        active = [(o, s) for o, s in active if o[best] + s[best] > offsets[best]]
        for other, lengths in active:
            if all(
                a < b + m and b < a + n
                for a, n, b, m in zip(offsets, sizes, other, lengths, strict=True)
            ):
                return True
        active.append((offsets, sizes))
    return False


class _NoStorages:
    size = 0

    def get(self, key: str, nbytes: int) -> Any:
        raise Refusal("it refers to external values")


def _resolve(name: str, plain: Meaning) -> Any:
    last = name.rpartition(".")[2]
    if name.startswith(_OLD_MODULES) and last in _RECORDS:
        return Name(name, lambda arguments: _record(name, arguments))
    if name.startswith("pathlib."):
        return Name(name, lambda _: "")
    meaning = plain.resolve(name)
    if isinstance(meaning, Name) and isinstance(meaning.make(()), Foreign):
        raise Refusal(f"its {METADATA} refers to {shown(name)}")
    return meaning


def _record(name: str, arguments: tuple[Any, ...]) -> Foreign:
    made = Foreign(name.rpartition(".")[2])
    made.state = arguments
    return made


def _dictionary(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise Damaged(f"its {METADATA} has no list of tensors")
    return value


def _is_record(value: Any, kind: str) -> bool:
    return isinstance(value, Foreign) and value.name == kind


def _fields(value: Any, kind: str) -> dict[str, Any]:
    """Attributes of a metadata record."""
    if not _is_record(value, kind):
        raise Damaged(f"its {METADATA} has another object instead of {kind}")
    state = value.state
    if kind == "TensorProperties" and isinstance(state, tuple) and len(state) in (5, 6):
        return {"dtype": state[0]}
    if not isinstance(state, dict):
        raise Damaged(f"its {METADATA} has an empty {kind}")
    return state


def _location(
    locations: Mapping[Any, tuple[str, int, int]], key: str, offsets: tuple[Any, ...]
) -> tuple[str, int, int]:
    for offset in offsets:
        if (key, offset) in locations:
            return locations[key, offset]
    raise Damaged(f"a shard of {shown(key)} has no file")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _numbers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or len(value) > DIMENSIONS:
        raise Damaged(f"its {METADATA} has an invalid shape")
    if not all(map(_is_count, value)):
        raise Damaged(f"its {METADATA} has an invalid shape")
    return tuple(value)


def _put(content: _Container, path: tuple[str | int, ...], value: Any) -> None:
    """Insert a value at its path, creating containers as needed."""
    container = content
    for key in path[:-1]:
        container = container.setdefault(key, _Container())
        if not isinstance(container, _Container):
            raise Damaged("its entries are inconsistent")
    if path[-1] in container:
        raise Damaged("two of its entries have the same path")
    container[path[-1]] = value


def _finished(container: _Container) -> Any:
    """Convert containers to dictionaries, and to lists if the keys are 0, 1, 2, ..."""
    values = {
        key: _finished(value) if isinstance(value, _Container) else value
        for key, value in container.items()
    }
    numbers = [isinstance(key, int) for key in values]
    if not any(numbers):
        return values
    if not all(numbers) or set(values) != set(range(len(values))):
        raise Damaged("a list in it has gaps")
    return [values[number] for number in range(len(values))]
