"""Copies of remote tars on a local disk, shared by the processes of a machine.

A tar is copied as a whole when its first sample is needed. When the copies exceed the limit, those
that were opened least recently are deleted; processes that still read one keep it open.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock

from src import files
from src.data.tars.files import filesystem_of, unreadable
from src.errors import UserError


class TarCache:
    """Folder of copies.

    Args:
        folder: The folder; it is made if it is missing.
        max_bytes: Bytes of all copies that are kept.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = Path(folder), max_bytes

    def local(self, url: str, size: int) -> Path:
        """Path of the copy of a tar, which is made if there is none.

        Args:
            url: URL of the tar.
            size: Its bytes.

        Raises:
            UserError: If it cannot be copied.
        """
        # The name does not contain the URL, whose characters may not be allowed in file names.
        path = self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.tar"
        with _locked(path.with_suffix(".lock")):
            if not path.is_file() or path.stat().st_size != size:
                self._make_room(size)
                self._copy(url, path)
            os.utime(path)
        return path

    def _copy(self, url: str, path: Path) -> None:
        filesystem, name = filesystem_of(url)
        with files.whole_file(path, durable=False) as unfinished:
            try:
                filesystem.get_file(name, str(unfinished))
            except Exception as error:  # backends of fsspec raise errors of their own
                if files.disk_problem(error):
                    raise
                raise unreadable(url, error) from error

    def _make_room(self, size: int) -> None:
        copies = []
        for path in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process deletes them too
                facts = path.stat()
                copies.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(entry[1] for entry in copies) + size
        for _, freed, path in sorted(copies):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= freed


def _locked(path: Path) -> AbstractContextManager[object]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path).acquire()
    except OSError as error:
        raise UserError(
            f"data.cache_dir {path.parent} cannot be used: {files.reason(error)}."
        ) from error
