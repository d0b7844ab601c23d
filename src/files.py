"""Atomic file writes.

Files are written to a temporary file in the same folder, ``.<random>.part``, and renamed when they
are complete. A full or read-only disk, a crash or Ctrl-C therefore leaves the previous file intact.
In tables, cells that a spreadsheet would evaluate as a formula are escaped.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from src.errors import UserError, printable

if TYPE_CHECKING:
    from PIL import Image

_SUFFIX = ".part"
_IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG"}
_HINTS = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "the quota is exceeded; delete files or choose another folder",
    errno.EFBIG: "the system or file system does not allow files of this size",
    errno.EROFS: "choose another folder",
    errno.EACCES: "choose a writable folder",
    errno.EPERM: "choose a writable folder",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EIO: "the disk or its connection is failing",
    errno.ENOTDIR: "part of the path is a file",
}
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


class NotWrittenError(UserError):
    """A file could not be written: full or read-only disk, missing permissions.

    Args:
        path: The file.
        error: The error of the system.
    """

    def __init__(self, path: Path | str, error: OSError | None = None) -> None:
        if error is None:  # raised again by PyTorch for a worker; `UserError` extracts the message
            super().__init__(str(path))
            return
        path = Path(path)
        exists = os.path.exists(path)  # noqa: PTH110 - no error if a name is too long
        exists &= not is_leftover(path)
        kept = f" The previous {on_one_line(path.name)} is intact." if exists else ""
        super().__init__(f"{on_one_line(path)} could not be written ({reason(error)}).{kept}")


def reason(error: OSError) -> str:
    """Error text of the system, with a hint how to fix it."""
    text = error.strerror or (str(error).strip().splitlines() or [type(error).__name__])[-1]
    hint = _HINTS.get(error.errno or 0)
    return f"{text}; {hint}" if hint else text


def disk_problem(error: BaseException | None) -> str | None:
    """Message if an error or one of its causes is a disk error, such as a full disk.

    Libraries that write files wrap the error of the system in their own exceptions.
    """
    cause = os_error_in(error)
    if cause is None:
        return None
    where = f"{on_one_line(str(cause.filename))}: " if cause.filename else "A file: "
    return f"{where}{reason(cause)}."


def os_error_in(error: BaseException | None) -> OSError | None:
    """The disk or path error that an error is, or that caused it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _HINTS:
            return error
        error = error.__cause__
    return None


def on_one_line(path: Path | str) -> str:
    """A path for a message, with line breaks and control characters escaped."""
    return printable(str(path)).replace("\n", "\\n")


@contextmanager
def whole_file(path: Path | str, *, durable: bool = True) -> Iterator[Path]:
    """Context manager with a temporary file, which replaces ``path`` if the block succeeds.

    Parent folders are created. The permissions of an existing file are kept. If ``path`` is a link,
    its target is replaced.

    Args:
        path: The file to write.
        durable: Sync the content to disk before renaming. Too slow for thousands of small images.

    Yields:
        An empty file in the same folder.

    Raises:
        NotWrittenError: If the disk is full or not writable; ``path`` is unchanged.
        UserError: If ``path`` is a folder, a device or a pipe.
    """
    path = Path(path)
    part: Path | None = None
    try:
        target = _target(path)
        part = _temporary(target.parent)
        _create(part, like=target)
        yield part
        if durable:
            _to_disk(part)
        part.replace(target)
    except OSError as error:
        raise NotWrittenError(path, error) from error
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink(missing_ok=True)


@contextmanager
def whole_folder(
    path: Path | str, last: Sequence[str] = (), parts: Sequence[str] = ()
) -> Iterator[Path]:
    """Context manager with a temporary folder, whose entries move to ``path`` on success.

    Entries with the same names are replaced; others are kept.

    Args:
        path: The folder to write.
        last: Names of the entries that mark the folder as valid, which are moved last.
        parts: Names of entries that are deleted from ``path`` if there are no new ones.

    Yields:
        An empty folder on the same disk.

    Raises:
        NotWrittenError: If the disk is full or not writable; ``path`` is unchanged.
    """
    path = Path(path)
    part: Path | None = None
    try:
        target = Path(os.path.realpath(path))
        exists = target.is_dir()
        if target.exists() and not exists:
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(target))
        _make_folder(target if exists else target.parent)
        part = _temporary(target if exists else target.parent)
        part.mkdir()
        yield part
        if exists:
            _move_entries(part, target, last, parts)
        else:
            part.rename(target)
    except NotWrittenError as error:  # of a file in the temporary folder
        raise NotWrittenError(str(error).replace(str(part), str(path))) from error
    except OSError as error:
        raise NotWrittenError(path, error) from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def is_leftover(path: Path) -> bool:
    """Whether a file or folder is an incomplete one, left by a killed command."""
    return path.name.startswith(".") and path.name.endswith(_SUFFIX)


def write_bytes(path: Path | str, content: bytes, *, durable: bool = True) -> None:
    """Write a file of bytes; see `whole_file`."""
    with whole_file(path, durable=durable) as part:
        part.write_bytes(content)


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 file; see `whole_file`. It may contain file names of any bytes."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: Path | str, content: Any, **options: Any) -> None:
    """Write a JSON file with a final newline; ``options`` are passed to `json.dumps`."""
    write_text(path, json.dumps(content, **options) + "\n")


def write_image(path: Path | str, image: Image.Image, **options: Any) -> None:
    """Write an image in the format of the extension; ``options`` are those of ``Image.save``."""
    buffer = io.BytesIO()
    image.save(buffer, format=_IMAGE_FORMATS[Path(path).suffix], **options)
    write_bytes(path, buffer.getvalue(), durable=False)


def write_with(path: Path | str, save: Callable[[IO[bytes]], object]) -> None:
    """Write a file with a function that takes an open file.

    PyTorch aborts the process if its archive writer cannot write, so disk errors are raised only
    after ``save`` has returned.

    Args:
        path: The file.
        save: For example ``lambda file: torch.save(content, file)``.
    """
    with whole_file(path) as part, part.open("wb", buffering=0) as file:
        deferred = _DeferredErrorFile(file)
        save(deferred)  # type: ignore[arg-type]
        deferred.check()


def write_tensors(path: Path | str, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    """Write a safetensors file; see `whole_file`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with whole_file(path) as part:
        mode = stat.S_IMODE(part.stat().st_mode)
        try:
            save_file(tensors, part, metadata)
            part.chmod(mode)  # safetensors replaces the file by one that only its owner can read
        except SafetensorError as error:  # contains the error of the system as text
            code = re.search(r"os error (\d+)|Os \{ code: (\d+)", str(error))
            if code is None:
                raise
            number = int(code[1] or code[2])
            raise OSError(number, os.strerror(number)) from error


def write_csv(path: Path | str, rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV table in UTF-8; formulas are escaped, see `text_cell`."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([text_cell(cell) for cell in row] for row in rows)
    write_text(path, buffer.getvalue())


def copy(source: Path, destination: Path) -> None:
    """Copy a file atomically, with its times and permissions; see `whole_file`."""
    with whole_file(destination) as part:
        shutil.copy2(source, part)


def readable_size(size: int) -> str:
    """Size of a file in powers of 1000, such as ``312 B``, ``4.1 kB``, ``8.6 MB``, ``4.36 GB``."""
    for unit, factor, digits in (("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 1)):
        if size >= 0.9995 * factor:
            return f"{size / factor:,.{digits}f} {unit}"
    return f"{size} B"


def text_cell(cell: object) -> object:
    """Table cell, prefixed with ``'`` if a spreadsheet would evaluate it as a formula.

    Numbers (also as text) and the single ``-`` of missing values are not changed.
    """
    if not isinstance(cell, str) or cell == "-" or _is_number(cell):
        return cell
    is_formula = cell.startswith(("\t", "\r", "\n")) or cell.lstrip().startswith(_FORMULA)
    return f"'{cell}" if is_formula else cell


def append_text(path: Path | str, text: str) -> None:
    """Append text to a file; if that fails, the file keeps its previous length.

    Raises:
        NotWrittenError: If the disk is full or not writable.
    """
    try:
        with Path(path).open("ab", buffering=0) as file:
            length = file.seek(0, os.SEEK_END)
            try:
                _write_all(file, text.encode("utf-8", "surrogateescape"))
            except OSError:
                file.truncate(length)
                raise
    except OSError as error:
        raise NotWrittenError(path, error) from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _target(path: Path) -> Path:
    """Target of a path with links resolved; parent folders are created."""
    target = Path(os.path.realpath(path))
    _make_folder(target.parent)
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "a device or a pipe"
        raise UserError(f"Cannot write a file to {on_one_line(path)}, because it is {kind}.")
    return target


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(folder)) from error


def _temporary(folder: Path) -> Path:
    # Independent of the final name, so that long names do not exceed the limit.
    return folder / f".{secrets.token_hex(6)}{_SUFFIX}"


def _create(part: Path, like: Path) -> None:
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    if like.exists():
        part.chmod(stat.S_IMODE(like.stat().st_mode))


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_entries(part: Path, target: Path, last: Sequence[str], parts: Sequence[str]) -> None:
    replaced = part / ".replaced"
    replaced.mkdir()
    for name in parts:
        if not (part / name).exists():
            with suppress(FileNotFoundError):
                (target / name).rename(replaced / name)
    for entry in sorted(part.iterdir(), key=lambda e: (e.name in last, e.name)):
        if entry == replaced:
            continue
        destination = target / entry.name
        if destination.is_dir() or entry.is_dir():
            with suppress(FileNotFoundError):
                destination.rename(replaced / entry.name)
        entry.rename(destination)


def _write_all(file: IO[bytes], content: bytes | memoryview) -> None:
    rest = memoryview(content).cast("B")
    while rest:
        rest = rest[file.write(rest) :]


class _DeferredErrorFile(io.RawIOBase):
    """File wrapper that stores the first write error instead of raising it."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self.file = file
        self.error: OSError | None = None

    def check(self) -> None:
        """Raise the first write error, if any."""
        if self.error is not None:
            raise self.error

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def write(self, data: Any) -> int:
        content = memoryview(data).cast("B")
        if self.error is None:
            try:
                _write_all(self.file, content)
            except OSError as error:
                self.error = error
        return len(content)
