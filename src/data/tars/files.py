"""Open tars, local or through fsspec, and read bytes at an offset.

Only regular files and objects are read; nothing is unpacked, so names in a tar are never paths.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from src.errors import UserError
from src.files import on_one_line, reason

PROTOCOLS = ("file", "http", "https", "s3", "gs", "gcs", "az", "abfs", "hf")
"""Protocols of URLs that are opened; other protocols of fsspec unpack or combine files."""
_BLOCK = 2**22  # bytes that a remote file reads ahead


class UnreadableTarError(UserError):
    """A tar that cannot be opened, or that has changed since it was indexed."""


class TarFile(Protocol):
    """An open tar.

    Attributes:
        size: Its bytes.
    """

    size: int

    def read_at(self, offset: int, size: int) -> bytes:
        """Bytes at an offset; fewer at the end of the file."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class LocalTar:
    """A tar on a disk. One file descriptor serves several processes and threads."""

    _descriptor = -1

    def __init__(self, path: str | Path) -> None:
        # Opening a pipe without the flag would block.
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        facts = os.fstat(self._descriptor)
        if not stat.S_ISREG(facts.st_mode):
            self.close()
            raise OSError("it is not a regular file")
        self.size = facts.st_size

    def read_at(self, offset: int, size: int) -> bytes:
        """Bytes at an offset; fewer at the end of the file."""
        return os.pread(self._descriptor, size, offset)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def __del__(self) -> None:
        self.close()


class RemoteTar:
    """A tar in an object store or behind a URL, read ahead in blocks."""

    def __init__(self, url: str) -> None:
        filesystem, path = filesystem_of(url)
        self._file: Any = filesystem.open(path, "rb", block_size=_BLOCK, cache_type="readahead")
        self.size = int(self._file.size)

    def read_at(self, offset: int, size: int) -> bytes:
        """Bytes at an offset; fewer at the end of the file."""
        self._file.seek(offset)
        return bytes(self._file.read(size))

    def close(self) -> None:
        """Close the connection."""
        self._file.close()


@contextmanager
def opened(url: str) -> Iterator[TarFile]:
    """Context manager of an open tar.

    Args:
        url: A path, or a URL that fsspec knows.

    Raises:
        UnreadableTarError: If it cannot be opened or read.
    """
    tar: TarFile | None = None
    try:
        tar = RemoteTar(url) if is_remote(url) else LocalTar(url)
        yield tar
    except UserError:
        raise
    except Exception as error:  # backends of fsspec raise errors of their own
        raise unreadable(url, error) from error
    finally:
        if tar is not None:
            tar.close()


def is_remote(url: str) -> bool:
    """Whether a name is a URL (``s3://bucket/name``) and not a path."""
    return "://" in url


def check_url(url: str) -> None:
    """Refuse a URL of another protocol, and chains of protocols of fsspec (``zip://a::s3://b``).

    Raises:
        UserError: If the URL is refused.
    """
    if url.partition("://")[0] not in PROTOCOLS or "::" in url:
        raise UserError(
            f"{on_one_line(url[:200])} cannot be opened: expected a URL with one of the protocols"
            f" {', '.join(PROTOCOLS)}, without '::'."
        )


def filesystem_of(url: str) -> tuple[Any, str]:
    """Fsspec's file system of a URL, and the path in it.

    Raises:
        UserError: If the URL is refused by `check_url`, or the package of its protocol is missing.
    """
    from fsspec.core import url_to_fs

    check_url(url)
    try:
        filesystem, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{on_one_line(url)} cannot be opened: {_text(error)}.") from error
    return filesystem, str(path)


def unreadable(url: str, error: Exception) -> UnreadableTarError:
    """The error of a tar that cannot be read."""
    return UnreadableTarError(f"The tar {on_one_line(url)} cannot be read: {_text(error)}.")


def _text(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    text = reason(error) if isinstance(error, OSError) else str(error)
    return " ".join(text.split())[:200].rstrip(".") or type(error).__name__
