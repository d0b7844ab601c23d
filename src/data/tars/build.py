"""Build the index of tars: scan them in parallel, apply filters, write the result.

Each scanned tar leaves a file in ``parts``, which is used again if the command is repeated: after
an interruption, after tars were added, or with other filters.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from src import files
from src.data.tars.files import (
    UnreadableTarError,
    filesystem_of,
    is_remote,
    opened,
    unreadable,
)
from src.data.tars.filters import Bits, Filters, Rows, repeated
from src.data.tars.index import PAIRS, TarIndex
from src.data.tars.scan import COLUMNS, POSITIONS, Fields, scan
from src.data.workers import obey_parent_only
from src.errors import UserError

_SCAN_VERSION = 1  # raise it when scanned rows change, so that old parts are not used
_SECONDS = 10  # between two progress lines


@dataclass(frozen=True)
class BuildSettings:
    """How an index is built.

    Attributes:
        fields: Fields of the JSON members that are used.
        filters: Which pairs are used.
        workers: Processes that scan tars.
        skip_unreadable: Leave out tars that cannot be opened.
    """

    fields: Fields = field(default_factory=Fields)
    filters: Filters = field(default_factory=Filters)
    workers: int = 1
    skip_unreadable: bool = False


@dataclass(frozen=True)
class _Part:
    """A scanned tar: the file with its rows, or why there is none."""

    name: str
    path: Path
    head: dict[str, Any]
    error: str = ""
    is_new: bool = False

    def rows(self) -> Rows:
        with self.path.open("rb") as file:
            file.readline()
            return np.fromfile(file, COLUMNS)


def build(
    out: Path,
    root: str,
    names: list[str],
    settings: BuildSettings,
    tell: Callable[[str], None],
) -> tuple[TarIndex, list[str]]:
    """Build or update an index.

    Args:
        out: Folder of the index.
        root: Folder or URL of the tars; a relative path begins at ``out``.
        names: Name of each tar under it.
        settings: Fields, filters and number of processes.
        tell: Receives lines about the progress.

    Returns:
        The index, and a line for each problem in a tar.

    Raises:
        UserError: If a tar cannot be opened and is not to be skipped.
    """
    index = TarIndex(out, root, names, *np.zeros((2, len(names)), np.int64))
    urls = [index.url(number) for number in range(len(names))]
    parts = list(_scanned(urls, names, out / "parts", settings, tell))
    unreadable = [part.error for part in parts if part.error]
    if unreadable and not settings.skip_unreadable:
        raise UserError(
            f"{len(unreadable)} of {len(parts)} tars cannot be read. The first: {unreadable[0]} "
            "Run the command again to retry only these, or leave them out with --skip-unreadable."
        )
    readable = [part for part in parts if not part.error]
    sizes, left_out = _write_pairs(out, readable, settings.filters)
    if unreadable:
        left_out["tar unreadable"] = len(unreadable)
    index = TarIndex(
        out,
        root,
        [part.name for part in readable],
        np.array([part.head["bytes"] for part in readable], np.int64),
        np.array(sizes, np.int64),
        settings.fields.text,
        dict(left_out),
    )
    index.write()
    problems = [f"{p.name}: {problem}" for p in readable for problem in p.head["problems"]]
    return index, unreadable + problems


def _scanned(
    urls: list[str],
    names: list[str],
    folder: Path,
    settings: BuildSettings,
    tell: Callable[[str], None],
) -> Iterator[_Part]:
    work = partial(_scan_tar, folder=folder, fields=settings.fields)
    if settings.workers <= 1 or len(urls) == 1:
        yield from _reported(map(work, urls, names), len(urls), tell)
        return
    with ProcessPoolExecutor(settings.workers, initializer=obey_parent_only) as pool:
        yield from _reported(pool.map(work, urls, names, chunksize=1), len(urls), tell)


def _reported(parts: Iterator[_Part], total: int, tell: Callable[[str], None]) -> Iterator[_Part]:
    begin = told = time.monotonic()
    count = new = 0
    for part in parts:
        count, new = count + 1, new + part.is_new
        if time.monotonic() - told > _SECONDS:
            told = time.monotonic()
            rate = new / (told - begin)
            left = f", about {(total - count) / rate / 60:.0f} min left" if rate else ""
            tell(f"{count} of {total} tars, {rate:.1f} tars/s{left}")
        yield part


def _scan_tar(url: str, name: str, folder: Path, fields: Fields) -> _Part:
    """Scan a tar, or find that it was scanned before; in a process of its own."""
    path = folder / f"{hashlib.sha256(url.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}.rows"
    try:
        state = _state(url)
        request = {"version": _SCAN_VERSION, "state": state, "fields": asdict(fields)}
        head = _head(path)
        if head is not None and head["request"] == request:
            return _Part(name, path, head)
        with opened(url) as tar:
            found = scan(tar, fields)
            head = {
                "request": request,
                "bytes": tar.size,
                "rows": len(found.rows),
                "left_out": dict(found.left_out),
                "problems": found.problems,
            }
    except UnreadableTarError as error:
        return _Part(name, path, {}, str(error))
    files.write_bytes(path, json.dumps(head).encode() + b"\n" + found.rows.tobytes())
    return _Part(name, path, head, is_new=True)


def _state(url: str) -> list[Any]:
    """What changes when a tar is replaced."""
    try:
        if not is_remote(url):
            facts = Path(url).stat()
            return [facts.st_size, facts.st_mtime_ns]
        filesystem, path = filesystem_of(url)
        info = filesystem.info(path)
    except UserError:
        raise
    except Exception as error:  # backends of fsspec raise errors of their own
        raise unreadable(url, error) from error
    return [info.get("size"), str(info.get("ETag", info.get("etag", "")))]


def _head(path: Path) -> dict[str, Any] | None:
    """First line of a part; None if it is missing or incomplete."""
    try:
        with path.open("rb") as file:
            head = json.loads(file.readline())
            rest = path.stat().st_size - file.tell()
        return head if rest == head["rows"] * np.dtype(COLUMNS).itemsize else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write_pairs(out: Path, parts: list[_Part], filters: Filters) -> tuple[list[int], Counter[str]]:
    """Write the rows that the filters keep; number of each tar, and what was left out."""

    def kept() -> Iterator[tuple[Rows, Bits]]:
        for part in parts:
            rows = part.rows()
            yield rows, filters.apply(rows)[0]

    total = sum(part.head["rows"] for part in parts)
    marks = repeated(kept, total) if filters.unique else np.zeros(0, bool)
    left_out: Counter[str] = Counter()
    sizes, start = [], 0
    with files.whole_file(out / PAIRS) as unfinished, unfinished.open("wb") as file:
        for part in parts:
            rows = part.rows()
            keep, counts = filters.apply(rows)
            left_out.update(part.head["left_out"])
            left_out.update(counts)
            if filters.unique:
                again = marks[start : start + len(rows)]
                left_out["repeated"] += int((keep & again).sum())
                keep &= ~again
            chosen = rows[keep]
            file.write(_positions(chosen).tobytes())
            sizes.append(len(chosen))
            start += len(rows)
    return sizes, Counter({reason: count for reason, count in left_out.items() if count})


def _positions(rows: Rows) -> Rows:
    positions = np.empty(len(rows), POSITIONS)
    for name, _ in POSITIONS:
        positions[name] = rows[name]
    return positions
