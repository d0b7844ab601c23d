"""Read safetensors files, single or sharded with an index."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from torch import Tensor

from src.serialization.json_files import parse_object, read_object
from src.serialization.limits import HEADER_BYTES, Damaged, Refusal, shown

INDEX_ENDING = ".index.json"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of one file by name, memory-mapped.

    Raises:
        Damaged: If it is damaged or has another format.
        Refusal: If its header exceeds a limit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_header(path)
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise Damaged(shown(error, 160)) from error


def _check_header(path: Path) -> None:
    if not path.is_file():
        raise Damaged("it is not a regular file")
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if not 2 <= length <= size - 8:
            raise Damaged("it is truncated, or not a safetensors file")
        if length > HEADER_BYTES:
            raise Refusal(f"its header has {length:,} bytes")
        header = parse_object(file.read(length))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(offsets, list) or not all(isinstance(o, int) for o in offsets):
            raise Damaged(f"its tensor {shown(name)} has no offsets")


def shards_of(index: Path) -> dict[str, str]:
    """File name of each tensor according to an index.

    Raises:
        Damaged: If it is not an index.
        Refusal: If it refers to a file outside its folder.
    """
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise Damaged("it has no weight_map")
    for file in files.values():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise Damaged(f"it refers to {shown(file)}, which is not a safetensors file")
        if Path(file).name != file or not file.isprintable() or "\\" in file:
            raise Refusal(f"it refers to {shown(file)}, which is not in its folder")
    return files


def read_shards(index: Path) -> dict[str, Any]:
    """Tensors of all files of an index.

    Raises:
        Damaged: If a file is missing, or its tensors differ from the index.
        Refusal: As in `shards_of` and `read_safetensors`.
    """
    files = shards_of(index)
    tensors: dict[str, Any] = {}
    for file in sorted(set(files.values())):
        path = index.parent / file
        if not path.is_file():
            raise Damaged(
                f"the shard {file} is missing from {index.parent}; download all shards to the"
                " folder of the index"
            )
        if not _belongs(path):
            raise Refusal(f"its shard {file} is a link to a file outside its folder")
        content = read_safetensors(path)
        unexpected = next((name for name in content if files.get(name) != file), None)
        if unexpected is not None:
            raise Damaged(f"{file} has the tensor {shown(unexpected)}, which is not in the index")
        tensors |= content
    missing = next((name for name in files if name not in tensors), None)
    if missing is not None:
        raise Damaged(f"the tensor {shown(missing)} is missing from {files[missing]}")
    return tensors


def _belongs(path: Path) -> bool:
    """Whether a file is in its folder, or in the blob folder of the hub cache."""
    folder, target = path.parent.resolve(), path.resolve()
    return target.parent == folder or (
        folder.parent.name == "snapshots" and target.parent == folder.parents[1] / "blobs"
    )
