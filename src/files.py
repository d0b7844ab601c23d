"""Write files that appear whole or not at all.

Everything that a user keeps is written under a temporary name beside its place, ``.<random>.part``,
and renamed when it is complete. A full or read-only disk, a crash or Ctrl-C therefore leaves what
was there before. Tables escape cells that a spreadsheet would run as a formula.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
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
    errno.ENOSPC: "free some space on the disk",
    errno.EDQUOT: "the quota is used up; remove files or choose another place",
    errno.EFBIG: "the system or the file system does not allow a file of this size",
    errno.EROFS: "choose another place",
    errno.EACCES: "choose a place that you may write to",
    errno.EPERM: "choose a place that you may write to",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EIO: "the disk or its connection is failing",
    errno.ENOTDIR: "a part of the path is a file",
}
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


class NotWrittenError(UserError):
    """A file that could not be written: full or read-only disk, missing rights.

    Args:
        path: The file.
        error: What the system said.
    """

    def __init__(self, path: Path | str, error: OSError | None = None) -> None:
        if error is None:  # a loader worker's account of this error, which `UserError` unwraps
            super().__init__(str(path))
            return
        path = Path(path)
        is_there = os.path.exists(path)  # noqa: PTH110 - no error where a name is too long
        is_there &= not is_leftover(path)
        kept = f" The previous {on_one_line(path.name)} is intact." if is_there else ""
        super().__init__(f"{on_one_line(path)} could not be written ({reason(error)}).{kept}")


def reason(error: OSError) -> str:
    """What the system says about a file operation, and what helps."""
    text = error.strerror or (str(error).strip().splitlines() or [type(error).__name__])[-1]
    hint = _HINTS.get(error.errno or 0)
    return f"{text}; {hint}" if hint else text


def disk_problem(error: BaseException | None) -> str | None:
    """One sentence if an error, or what caused it, is a disk that is full or may not be written.

    Libraries write files too, and wrap what the system says in errors of their own.
    """
    cause = os_error_in(error)
    if cause is None:
        return None
    where = f"{on_one_line(str(cause.filename))}: " if cause.filename else "A file: "
    return f"{where}{reason(cause)}."


def os_error_in(error: BaseException | None) -> OSError | None:
    """The error of a disk or a path that an error is, or that it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _HINTS:
            return error
        error = error.__cause__
    return None


def on_one_line(path: Path | str) -> str:
    """A path for a sentence: line breaks and control characters as escapes."""
    return printable(str(path)).replace("\n", "\\n")


@contextmanager
def whole_file(path: Path | str, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary file to write to; it takes the place of ``path`` when the block succeeds.

    Folders above are made. The permissions of an existing file stay, a link keeps pointing to the
    file, which is replaced where it lies.

    Args:
        path: The file that is meant.
        durable: Wait until the content is on the disk, so that a power cut loses nothing. Not
            worth its time for thousands of small images.

    Yields:
        An empty file in the same folder.

    Raises:
        NotWrittenError: If the disk is full or may not be written; ``path`` is as it was.
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
    """Give a temporary folder to fill; what is in it goes to ``path`` when the block succeeds.

    Entries of the same names are replaced, others stay.

    Args:
        path: The folder that is meant.
        last: Names of the entries that make the folder valid, which are moved at the end.
        parts: Names of entries that are removed from ``path`` if there are no new ones.

    Yields:
        An empty folder on the same disk.

    Raises:
        NotWrittenError: If the disk is full or may not be written; ``path`` is as it was.
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
    """Whether a file or folder is one that a killed command has not finished."""
    return path.name.startswith(".") and path.name.endswith(_SUFFIX)


def write_bytes(path: Path | str, content: bytes, *, durable: bool = True) -> None:
    """Write a file of bytes; see `whole_file`."""
    with whole_file(path, durable=durable) as part:
        part.write_bytes(content)


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 file; see `whole_file`. Names of files in it can be any bytes."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: Path | str, content: Any, **options: Any) -> None:
    """Write a JSON file that ends with a line break; ``options`` are those of `json.dumps`."""
    write_text(path, json.dumps(content, **options) + "\n")


def write_image(path: Path | str, image: Image.Image, **options: Any) -> None:
    """Write an image in the format of the ending; ``options`` are those of ``Image.save``."""
    buffer = io.BytesIO()
    image.save(buffer, format=_IMAGE_FORMATS[Path(path).suffix], **options)
    write_bytes(path, buffer.getvalue(), durable=False)


def write_with(path: Path | str, save: Callable[[IO[bytes]], object]) -> None:
    """Write a file through a function that takes an open file.

    PyTorch ends the process when its archive writer cannot write, so errors of the disk are kept
    until ``save`` has returned.

    Args:
        path: The file.
        save: For example ``lambda file: torch.save(content, file)``.
    """
    with whole_file(path) as part, part.open("wb", buffering=0) as file:
        patient = _PatientFile(file)
        save(patient)  # type: ignore[arg-type]
        patient.check()


def write_csv(path: Path | str, rows: Iterable[Sequence[object]]) -> None:
    """Write a table in UTF-8; see `text_cell` for text that a spreadsheet would run."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([text_cell(cell) for cell in row] for row in rows)
    write_text(path, buffer.getvalue())


def copy(source: Path, destination: Path) -> None:
    """Copy a file with its times and permissions; see `whole_file`."""
    with whole_file(destination) as part:
        shutil.copy2(source, part)


def text_cell(cell: object) -> object:
    """A cell for a table: text that a spreadsheet would take for a formula gets a ``'`` in front.

    Numbers, also those in text, and the single ``-`` of missing values stay as they are.
    """
    if not isinstance(cell, str) or cell == "-" or _is_number(cell):
        return cell
    runs = cell.startswith(("\t", "\r", "\n")) or cell.lstrip().startswith(_FORMULA)
    return f"'{cell}" if runs else cell


def append_text(path: Path | str, text: str) -> None:
    """Add text to the end of a file; if that fails, the file keeps its old length.

    Raises:
        NotWrittenError: If the disk is full or may not be written.
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
    """Where a path leads through links; folders above are made."""
    target = Path(os.path.realpath(path))
    _make_folder(target.parent)
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "a device or a pipe"
        raise UserError(f"{on_one_line(path)} is {kind}, so no file is written there.")
    return target


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(folder)) from error


def _temporary(folder: Path) -> Path:
    # Short whatever the final name is, so that long names do not get too long.
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
        place = target / entry.name
        if place.is_dir() or entry.is_dir():
            with suppress(FileNotFoundError):
                place.rename(replaced / entry.name)
        entry.rename(place)


def _write_all(file: IO[bytes], content: bytes | memoryview) -> None:
    rest = memoryview(content).cast("B")
    while rest:
        rest = rest[file.write(rest) :]


class _PatientFile(io.RawIOBase):
    """Passes writing on to a file; after an error it takes everything and writes nothing."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self.file = file
        self.error: OSError | None = None

    def check(self) -> None:
        """Raise the first error."""
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
