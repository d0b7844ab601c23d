"""The one door for files that may come from strangers.

Whatever cannot be read is a `UserError` of one sentence: what is wrong with which file, and what to
do. Nothing in a file is executed, and nothing is imported because a file names it.
"""

from __future__ import annotations

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
def one_sentence(
    kind: str, path: Path, advice: str = "Download or copy it again."
) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into a `UserError` of one sentence.

    Args:
        kind: What the file is, as in "weight file".
        path: The file.
        advice: What to do with a damaged file.
    """
    try:
        yield
    except UserError:
        raise
    except Refusal as error:
        raise UserError(f"The {kind} {path} is not read: {error}.") from error
    except Damaged as error:
        raise UserError(_damaged(kind, path, str(error), advice)) from error
    except (Exception, RecursionError, MemoryError) as error:  # what no check has foreseen
        reason = shown(str(error).strip() or type(error).__name__, 160)
        raise UserError(_damaged(kind, path, reason, advice)) from error


def _damaged(kind: str, path: Path, reason: str, advice: str) -> str:
    size = f" ({path.stat().st_size:,} bytes)" if path.is_file() else ""
    return (
        f"The {kind} {path}{size} cannot be read: it is damaged, incomplete or of another kind"
        f" ({reason}). {advice}"
    )


def read_weights(path: Path) -> dict[str, Any]:
    """Read a file with weights as it is, on the CPU.

    Args:
        path: A ``.pth``, ``.safetensors`` or ``.safetensors.index.json`` file.

    Returns:
        The content, with all tensors in the file's own dtype. Objects of other classes are
        dictionaries, lists or stubs without content.

    Raises:
        UserError: If it is damaged or of another kind, or holds what is not read.
    """
    with one_sentence("weight file", path):
        if path.name.endswith(INDEX_ENDING):
            return read_shards(path)
        if path.suffix == ".safetensors":
            return dict(read_safetensors(path))
        content = archives.read(archives.Region(path), foreign=True)
        if not isinstance(content, Mapping):
            raise Damaged(f"it holds a {type(content).__name__}, not a dictionary of tensors")
        return dict(content)


def read_plain(path: Path, kind: str = "checkpoint") -> Any:
    """Read a file of ``torch.save`` that holds tensors and plain values, nothing else.

    Raises:
        UserError: As `read_weights`.
    """
    with one_sentence(kind, path, "Take an older checkpoint, or copy it again."):
        return archives.read(archives.Region(path), foreign=False)


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """Read a json file that holds an object.

    Raises:
        UserError: If it is no json, or passes a limit.
    """
    with one_sentence(kind, path):
        return read_object(path)


def shard_names(index: Path) -> list[str]:
    """Names of the files that the index of sharded safetensors lists.

    Raises:
        UserError: If it is no index, or names a file outside its folder.
    """
    with one_sentence("index", index):
        return sorted(set(shards_of(index).values()))
