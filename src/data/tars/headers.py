"""List the members of a tar without unpacking it.

Python's ``tarfile`` reads fewer members per second (benchmarks/image_text_data.py) and has no limit
on the size of extended headers. Regular files with names in the ustar, GNU and pax formats are
listed; folders, links and devices are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from src.data.tars.files import TarFile
from src.errors import UserError

BLOCK = 512
_CHECKSUM = slice(148, 156)
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
_GNU_NAME, _PAX, _PAX_GLOBAL, _GNU_LINK = b"L", b"x", b"g", b"K"
_MAX_EXTENDED = 2**20
_LARGEST = 2**44


class Member(NamedTuple):
    """A file in a tar: its name, and where its content is, in bytes."""

    name: str
    offset: int
    size: int


class DamagedTarError(UserError):
    """A tar that ends too early or has an invalid header."""


def members(tar: TarFile) -> Iterator[Member]:
    """Regular files of a tar in their order.

    Raises:
        DamagedTarError: If a header is invalid or a member is cut off; the members before it have
            been given.
    """
    position, name, size = 0, None, None
    while True:
        header = tar.read_at(position, BLOCK)
        if not header.strip(b"\0"):
            if header or position == tar.size:  # also without the usual empty blocks at the end
                return
            raise DamagedTarError(f"it ends at byte {tar.size}, before its next member")
        kind = _kind(header, position)
        claimed = _number(header[124:136], position)
        size = claimed if size is None or kind not in _REGULAR else size
        content = position + BLOCK
        end = content + (0 if kind in _WITHOUT_CONTENT else -(-size // BLOCK) * BLOCK)
        if content + (end > content) * size > tar.size:
            raise DamagedTarError(f"its member at byte {position} is cut off")
        if kind in (_GNU_NAME, _PAX):
            extended = _extended(tar, content, size, position)
            if kind == _GNU_NAME:
                name, size = extended.rstrip(b"\0"), None
            else:
                records = _pax_records(extended)
                name = records.get(b"path", name)
                size = _pax_size(records, position)
        elif kind in (_PAX_GLOBAL, _GNU_LINK):
            size = None
        else:
            if kind in _REGULAR:
                whole = _ustar_name(header) if name is None else name
                yield Member(whole.decode("utf-8", "surrogateescape"), content, size)
            elif kind not in _WITHOUT_CONTENT:
                raise DamagedTarError(f"its member at byte {position} is of type {kind!r}")
            name = size = None
        position = end


def name_at(tar: TarFile, content: int) -> str:
    """Name of the member whose content begins at an offset, as far as its own header tells."""
    return _ustar_name(tar.read_at(content - BLOCK, BLOCK)).decode("utf-8", "surrogateescape")


def _kind(header: bytes, position: int) -> bytes:
    if len(header) < BLOCK:
        raise DamagedTarError(f"its header at byte {position} is cut off")
    expected = sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ")
    try:
        stored = int(header[_CHECKSUM].split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        stored = -1
    if stored != expected:
        raise DamagedTarError(f"its header at byte {position} is damaged, or it is not a tar")
    return header[156:157]


def _number(field: bytes, position: int) -> int:
    try:
        if field[0] & 0x80:  # GNU: binary, for files of more than 8 GiB
            value = int.from_bytes(field[1:], "big")
        else:
            value = int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        value = -1
    if not 0 <= value < _LARGEST:
        raise DamagedTarError(f"its header at byte {position} has an invalid size")
    return value


def _ustar_name(header: bytes) -> bytes:
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    return prefix + b"/" + name if header[257:263] == b"ustar\0" and prefix else name


def _extended(tar: TarFile, offset: int, size: int, position: int) -> bytes:
    if size > _MAX_EXTENDED:
        raise DamagedTarError(f"its extended header at byte {position} has {size} bytes")
    return tar.read_at(offset, size)


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    """Records ``length key=value`` and a line break; what is malformed ends them."""
    records: dict[bytes, bytes] = {}
    while content:
        digits, _, _ = content.partition(b" ")
        if not digits.isdigit() or len(digits) > 8 or int(digits) <= len(digits):
            break
        key, _, value = content[len(digits) + 1 : int(digits) - 1].partition(b"=")
        records[key] = value
        content = content[int(digits) :]
    return records


def _pax_size(records: dict[bytes, bytes], position: int) -> int | None:
    text = records.get(b"size")
    if text is None:
        return None
    if not text.isdigit() or len(text) > 14:
        raise DamagedTarError(f"its extended header at byte {position} has an invalid size")
    return int(text)
