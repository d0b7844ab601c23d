"""Find the image-text pairs of a tar, and what filters need to know of each.

A pair is an image (jpg, png or webp) and a text (txt, or a field of json) whose names differ only
after the first dot and that follow each other, as img2dataset and webdataset write them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.data.tars.files import TarFile
from src.data.tars.headers import BLOCK, DamagedTarError, Member, members
from src.errors import printable

IMAGES = ("jpg", "jpeg", "png", "webp")
MAX_IMAGE_BYTES, MAX_TEXT_BYTES = 2**28, 2**20
JSON_FLAG = 1 << 31  # of `text_size`: the text is a field of a JSON object
_MOST_PROBLEMS = 20  # that are kept of one tar
_MOST_BLOCKS = 2**32

POSITIONS = [
    ("image_block", "<u4"),  # in blocks of 512 bytes, to which tars align their members
    ("image_size", "<u4"),
    ("text_block", "<u4"),
    ("text_size", "<u4"),
]
"""Columns of a pair in the index: where its members are."""
COLUMNS = [
    *POSITIONS,
    ("width", "<u2"),  # 0 if unknown
    ("height", "<u2"),
    ("characters", "<u4"),  # of the text
    ("score", "<f4"),  # NaN if there is none
    ("identity", "<u8"),  # hash of the field that must be unique; 0 if there is none
]
"""Columns of a pair while filters are applied."""


@dataclass(frozen=True)
class Fields:
    """Which fields of the JSON members are used.

    Attributes:
        text: Field that holds the text; empty: the txt member, or "caption" where there is none.
        score: Field of a number, for example the similarity of image and text.
        unique: Field that identifies a sample, for example "url"; "key" without such a field is the
            name in the tar.
    """

    text: str = ""
    score: str = ""
    unique: str = ""


@dataclass
class Scanned:
    """What a tar holds.

    Attributes:
        rows: One row of `COLUMNS` for each pair, in the order of the tar.
        left_out: Number of samples that are not pairs, by reason.
        problems: The first problems, each with the name of its member.
    """

    rows: NDArray[Any]
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class _NoPairError(Exception):
    """A sample that cannot be used; the message is the reason."""


def scan(tar: TarFile, fields: Fields) -> Scanned:
    """Pairs of a tar, up to the first damaged header."""
    found = Scanned(np.empty(0, COLUMNS))
    rows: list[tuple[Any, ...]] = []
    for key, group in groupby(_readable(tar, found), key=lambda member: _key(member.name)):
        try:
            rows.append(_row(tar, key, group, fields))
        except _NoPairError as error:
            found.left_out[str(error)] += 1
            if len(found.problems) < _MOST_PROBLEMS:
                found.problems.append(f"{_one_line(key)}: {error}")
    found.rows = np.array(rows, COLUMNS)
    return found


def text_of(content: bytes, is_json: bool, name: str) -> str:
    """The text of a pair.

    Args:
        content: The text member.
        is_json: Whether it is a JSON object.
        name: Field of the object; empty is "caption".
    """
    if not is_json:
        return content.decode("utf-8", "replace")
    text = _json(content).get(name or "caption")
    return text if isinstance(text, str) else ""


def _readable(tar: TarFile, found: Scanned) -> Iterator[Member]:
    try:
        yield from members(tar)
    except DamagedTarError as error:
        found.left_out["tar damaged"] += 1
        found.problems.insert(0, f"the tar is damaged: {error}")


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _row(tar: TarFile, key: str, group: Iterable[Member], fields: Fields) -> tuple[Any, ...]:
    parts = {member.name.rpartition("/")[2].partition(".")[2].lower(): member for member in group}
    image = next((parts[extension] for extension in IMAGES if extension in parts), None)
    if image is None:
        raise _NoPairError("no image")
    if not 0 < image.size <= MAX_IMAGE_BYTES:
        raise _NoPairError("image empty" if not image.size else "image file too large")
    facts = _facts(tar, parts.get("json"))
    is_json = bool(fields.text) or "txt" not in parts
    member = parts.get("json" if is_json else "txt")
    if member is None:
        raise _NoPairError("no text")
    if member.size > MAX_TEXT_BYTES:
        raise _NoPairError("text too long")
    if is_json:
        text = facts.get(fields.text or "caption")
    else:
        text = tar.read_at(member.offset, member.size).decode("utf-8", "replace")
    if not isinstance(text, str) or not text.strip():
        raise _NoPairError("no text")
    if max(image.offset, member.offset) // BLOCK >= _MOST_BLOCKS:
        raise _NoPairError("beyond 2 TiB")
    return (
        image.offset // BLOCK,
        image.size,
        member.offset // BLOCK,
        member.size | (JSON_FLAG if is_json else 0),
        _side(facts.get("width")),
        _side(facts.get("height")),
        len(text),
        _score(facts.get(fields.score)) if fields.score else np.nan,
        _identity(facts, key, fields.unique) if fields.unique else 0,
    )


def _facts(tar: TarFile, member: Member | None) -> dict[str, Any]:
    if member is None or member.size > MAX_TEXT_BYTES:
        return {}
    return _json(tar.read_at(member.offset, member.size))


def _json(content: bytes) -> dict[str, Any]:
    """An untrusted JSON object; empty if it is none."""
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _side(value: object) -> int:
    return min(value, 65535) if isinstance(value, int) and value > 0 else 0


def _score(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(value) if is_number else np.nan  # type: ignore[arg-type]
    except OverflowError:
        return np.nan


def _identity(facts: dict[str, Any], key: str, name: str) -> int:
    value = facts.get(name, key if name == "key" else None)
    if value is None:
        return 0
    digest = hashlib.blake2b(str(value).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little") or 1


def _one_line(key: str) -> str:
    return printable(key).replace("\n", "\\n")
