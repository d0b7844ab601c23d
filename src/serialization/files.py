"""Entry points for reading untrusted files.

Every problem is reported as a one-line `UserError` with the file, the problem and what to do.
Nothing in a file is executed or imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.serialization import archives
from src.serialization.json_files import read_object
from src.serialization.limits import Damaged, Refusal, shown
from src.serialization.safetensors_files import (
    INDEX_ENDING,
    read_safetensors,
    read_shards,
    shards_of,
)


@contextmanager
def as_user_error(
    kind: str, path: Path, advice: str = "Download or copy it again."
) -> Iterator[None]:
    """Convert any exception while reading a file to a one-line `UserError`.

    Args:
        kind: Kind of the file, such as "weight file".
        path: The file.
        advice: What to do with a damaged file.
    """
    try:
        yield
    except UserError:
        raise
    except Refusal as error:
        if other := _other_content(path):
            raise UserError(_damaged(kind, path, other, advice)) from None
        raise UserError(f"The {kind} {path} is refused: {error}.") from None
    except Damaged as error:
        reason = _other_content(path) or str(error)
        raise UserError(_damaged(kind, path, reason, advice)) from None
    except (Exception, RecursionError, MemoryError) as error:  # not covered by the checks
        reason = shown(str(error).strip() or type(error).__name__, 160)
        raise UserError(_damaged(kind, path, reason, advice)) from error


def _damaged(kind: str, path: Path, reason: str, advice: str) -> str:
    size = f" ({path.stat().st_size:,} bytes)" if path.is_file() else ""
    return (
        f"The {kind} {path}{size} cannot be read: it is damaged, incomplete or has another format"
        f" ({reason}). {advice}"
    )


def _other_content(path: Path) -> str | None:
    """What is often saved in place of a file, if its first bytes say so."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(256)
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; `git lfs pull` gets the file itself"
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)\b", start, re.IGNORECASE):
        return "it is a web page"
    return None


def read_weights(path: Path) -> dict[str, Any]:
    """Read a weight file to the CPU.

    Args:
        path: A ``.pth``, ``.safetensors`` or ``.safetensors.index.json`` file.

    Returns:
        The content, with all tensors in the dtype of the file. Objects of other classes are
        converted to dictionaries, lists or empty placeholders.

    Raises:
        UserError: If it is damaged, has another format or contains unsupported content.
    """
    with as_user_error("weight file", path):
        if path.name.endswith(INDEX_ENDING):
            return read_shards(path)
        if path.suffix == ".safetensors":
            return dict(read_safetensors(path))
        content = archives.read(archives.Region(path), foreign=True)
        if not isinstance(content, Mapping):
            raise Damaged(f"expected a dictionary of tensors, got {type(content).__name__}")
        return dict(content)


def read_plain(path: Path, kind: str = "checkpoint") -> Any:
    """Read a file of ``torch.save`` that contains only tensors and plain values.

    Raises:
        UserError: As in `read_weights`.
    """
    with as_user_error(kind, path, "Use an older checkpoint, or copy it again."):
        return archives.read(archives.Region(path), foreign=False)


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        UserError: If it is not valid JSON, or exceeds a limit.
    """
    with as_user_error(kind, path):
        return read_object(path)


def shard_names(index: Path) -> list[str]:
    """Names of the files in the index of sharded safetensors.

    Raises:
        UserError: If it is not an index, or names a file outside its folder.
    """
    with as_user_error("index", index):
        return sorted(set(shards_of(index).values()))
