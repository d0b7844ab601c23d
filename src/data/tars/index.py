"""The index of a set of tars on disk.

``index.json`` lists the tars with the number of pairs of each; ``pairs.bin`` has 16 bytes for each
pair: where its image and its text are. The rows of a tar are read when the tar is opened, so a
process needs memory for the tars in use only, however long the index is.
"""

from __future__ import annotations

import json
import os
import posixpath
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src import files
from src.data.tars.files import check_url, is_remote
from src.data.tars.scan import POSITIONS
from src.errors import MALFORMED_CONTENT, UserError

INDEX, PAIRS = "index.json", "pairs.bin"
_VERSION = 1
_COMMAND = "python -m src prepare index-tars"


@dataclass
class TarIndex:
    """Tars and the pairs in them.

    Attributes:
        folder: Where the index is.
        root: Folder or URL of the tars; a relative path begins at the folder of the index.
        names: Name of each tar under the root.
        bytes: Size of each tar when it was scanned.
        sizes: Number of pairs of each tar, int64 ``(T,)``.
        text: Field of JSON members that holds the text; empty is "caption".
        left_out: Number of samples that are not used, by reason.
    """

    folder: Path
    root: str
    names: list[str]
    bytes: NDArray[np.int64]
    sizes: NDArray[np.int64]
    text: str = ""
    left_out: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Add up the sizes."""
        self.starts = np.cumsum(self.sizes) - self.sizes

    def __len__(self) -> int:
        """Number of pairs."""
        return int(self.sizes.sum())

    def url(self, tar: int) -> str:
        """Path or URL of a tar."""
        if is_remote(self.root):
            return posixpath.join(self.root, self.names[tar])
        # As `os.path.relpath` has made it; the folder of the index need not exist yet.
        return os.path.normpath(self.folder.absolute() / self.root / self.names[tar])

    def rows(self, tar: int) -> NDArray[Any]:
        """Positions of the pairs of a tar, `POSITIONS`, as a view of the mapped file."""
        count = int(self.sizes[tar])
        if not count:
            return np.empty(0, POSITIONS)
        offset = int(self.starts[tar]) * np.dtype(POSITIONS).itemsize
        mapped: NDArray[Any] = np.memmap(
            self.folder / PAIRS, dtype=POSITIONS, mode="r", offset=offset, shape=(count,)
        )
        return mapped

    def write(self) -> None:
        """Write ``index.json``, after ``pairs.bin``, without which it is not valid."""
        tars = zip(self.names, self.bytes.tolist(), self.sizes.tolist(), strict=True)
        files.write_json(
            self.folder / INDEX,
            {
                "version": _VERSION,
                "root": self.root,
                "text": self.text,
                "left_out": self.left_out,
                "tars": [list(entry) for entry in tars],
            },
        )


def read_index(folder: str | Path, root: str | None = None) -> TarIndex:
    """Read an index.

    Args:
        folder: The folder that ``prepare index-tars`` has written.
        root: Folder or URL of the tars, if they have moved.

    Raises:
        UserError: If it is missing or damaged, or its root is a URL that is not opened.
    """
    folder = Path(folder)
    path = folder / INDEX
    if not path.is_file():
        raise UserError(
            f"{folder} holds no index of tars (no {INDEX}). Build it with `{_COMMAND} TARS --out "
            f"{folder}`."
        )
    try:
        index = _parsed(folder, path)
        size = (folder / PAIRS).stat().st_size
    except (OSError, *MALFORMED_CONTENT) as error:
        raise _damaged(folder) from error
    if size != len(index) * np.dtype(POSITIONS).itemsize:
        raise _damaged(folder)
    if root is not None:
        index.root = root if is_remote(root) else str(Path(root).absolute())
    if is_remote(index.root):
        check_url(index.root)
    return index


def _parsed(folder: Path, path: Path) -> TarIndex:
    content = json.loads(path.read_bytes())
    if content["version"] != _VERSION:
        raise ValueError("unknown version")
    names = [str(name) for name, _, _ in content["tars"]]
    numbers = np.array([entry[1:] for entry in content["tars"]], np.int64).reshape(-1, 2)
    if (numbers < 0).any() or not all(_is_inside(name) for name in names):
        raise ValueError("invalid tar")
    return TarIndex(
        folder,
        str(content["root"]),
        names,
        numbers[:, 0],
        numbers[:, 1],
        str(content["text"]),
        {str(reason): int(count) for reason, count in content["left_out"].items()},
    )


def _is_inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/") and "\0" not in name


def _damaged(folder: Path) -> UserError:
    return UserError(
        f"The index in {folder} is damaged or of another version. Build it again with `{_COMMAND}`;"
        " tars that were scanned are not read again."
    )
