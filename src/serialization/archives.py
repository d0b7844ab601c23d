"""Files of ``torch.save``: zip archives and the legacy format.

Uncompressed members are memory-mapped, so that they are not copied. Compressed members are
decompressed within a limit.
"""

from __future__ import annotations

import copy
import io
import os
import re
import stat
import struct
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import UntypedStorage

from src.serialization import pickles
from src.serialization.limits import (
    DIRECTORY_BYTES,
    GLOBAL_LENGTH,
    INFLATION,
    INFLATION_FREE,
    OVERLAP,
    PICKLE_BYTES,
    Damaged,
    Refusal,
    shown,
)
from src.serialization.tensors import Meaning
from src.serialization.values import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

_ALIGNMENT = 16
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # of the legacy format
_LOCAL_HEADER = 30  # bytes before the name of a member
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Region:
    """A regular file or a byte range of one.

    Args:
        path: The file.

    Raises:
        Damaged: If it is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Damaged("it is not a regular file")
        self.path, self.start, self.size = path, 0, status.st_size
        self._mapping = _Mapping(path, status.st_size)

    def part(self, start: int, size: int) -> Region:
        """A byte range of this region.

        Raises:
            Damaged: If it is not inside this region.
        """
        if start < 0 or size < 0 or start + size > self.size:
            raise Damaged(f"{shown(self.path.name)} is truncated")
        part = copy.copy(self)
        part.start, part.size = self.start + start, size
        return part

    @contextmanager
    def open(self) -> Iterator[_Reader]:
        """Open for reading."""
        with self.path.open("rb") as file:
            yield _Reader(file, self.start, self.size)

    def mapped(self, start: int, size: int) -> UntypedStorage | None:
        """Memory-mapped bytes, or ``None`` if they are not aligned in the file."""
        start += self.start
        return None if start % _ALIGNMENT or not size else self._mapping.slice(start, size)


class _Mapping:
    """Memory mapping of a file, created on first use and shared by all its regions."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self.memory: UntypedStorage | None = None

    def slice(self, start: int, size: int) -> UntypedStorage:
        if self.memory is None:
            memory: Any = UntypedStorage.from_file(str(self.path), False, self.size)
            self.memory = memory
        part: UntypedStorage = self.memory[start : start + size]
        return part


class _Reader(io.RawIOBase):
    """Reader of a byte range of a file; reads at most ``limit`` bytes at once."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self.file, self.start, self.length, self.at = file, start, size, 0
        self.limit = PICKLE_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence]
        if base + offset < 0:
            raise OSError("negative position in the file")
        self.at = base + offset
        return self.at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.length - self.at)
        size = left if size < 0 else min(size, left)
        if size > self.limit:
            raise Refusal(f"a part of it has {size:,} bytes, more than the limit of {self.limit:,}")
        self.file.seek(self.start + self.at)
        data = self.file.read(size)
        self.at += len(data)
        return data

    def read_into(self, target: memoryview) -> None:
        """Read into ``target``, which may exceed the limit."""
        if self.at + len(target) > self.length:
            raise Damaged("it is truncated")
        self.file.seek(self.start + self.at)
        done = 0
        while done < len(target):
            count = self.file.readinto(target[done:])  # type: ignore[attr-defined]
            if not count:
                raise Damaged("it is truncated")
            done += count
        self.at += done


def read(region: Region, *, foreign: bool, free: int = INFLATION_FREE) -> Any:
    """Read a file of ``torch.save``.

    Args:
        region: File, or part of a file.
        foreign: Whether objects of other classes are allowed, see `plain`.
        free: Uncompressed size that is always allowed.

    Returns:
        The content: plain values and tensors.

    Raises:
        Refusal: If it contains unsupported content.
        Damaged: If it is damaged or has another format.
    """
    with region.open() as file:
        start = file.read(4)
    if start[:2] == b"PK":
        return _read_zip(region, foreign, free)
    try:
        return _read_legacy(region, foreign)
    except Refusal:
        if _can_start_a_pickle(region):
            raise
        raise Damaged("it is not a file of torch.save") from None


# ------------------------------------------------------------------------ zip


def _read_zip(region: Region, foreign: bool, free: int) -> Any:
    with region.open() as file:
        file.limit = DIRECTORY_BYTES
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise Damaged("it is truncated, or not a file of PyTorch") from error
        with archive:
            file.limit = PICKLE_BYTES
            members = _Members(region, archive, file, free)
            meaning = Meaning(members)
            data = members.bytes_of("data.pkl", PICKLE_BYTES)
            value, _ = pickles.load(data, meaning.resolve, meaning.storage)
            return plain(value, foreign=foreign)


class _Members:
    """Members of an archive by their path inside its folder."""

    def __init__(self, region: Region, archive: zipfile.ZipFile, file: _Reader, free: int) -> None:
        self.region, self.archive, self.size, self.file = region, archive, region.size, file
        infos = archive.infolist()
        pickled = [i.filename for i in infos if i.filename.split("/")[1:] == ["data.pkl"]]
        if any(info.filename.split("/")[1:] == ["constants.pkl"] for info in infos):
            raise Refusal("it is a TorchScript program")
        if len(pickled) != 1:
            raise Damaged("it is a zip archive, but not one of torch.save")
        self.folder = pickled[0].removesuffix("data.pkl")
        self.infos = {info.filename: info for info in infos}
        if len(self.infos) != len(infos):
            raise Damaged("it has two members with the same name")
        self._check_packing(free)
        self._check_byte_order()

    def _check_packing(self, free: int) -> None:
        for info in self.infos.values():
            if info.flag_bits & 0x1 or info.compress_type not in _COMPRESSIONS:
                raise Refusal(
                    f"its member {shown(info.filename)} is encrypted or has an unknown compression"
                )
            if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
                raise Damaged(f"its member {shown(info.filename)} has inconsistent sizes")
        packed = sum(info.compress_size for info in self.infos.values())
        unpacked = sum(info.file_size for info in self.infos.values())
        if packed > self.size or unpacked > INFLATION * self.size + free:
            raise Refusal(
                f"its {self.size:,} bytes would be decompressed to {unpacked:,} bytes, or its"
                " members overlap"
            )

    def _check_byte_order(self) -> None:
        if f"{self.folder}byteorder" in self.infos:
            order = self.bytes_of("byteorder", 16)
            if order != b"little":
                raise Refusal(f"it has the byte order {shown(order)}")

    def _info(self, name: str) -> zipfile.ZipInfo:
        info = self.infos.get(self.folder + name)
        if info is None:
            raise Damaged(f"its member {shown(name)} is missing")
        return info

    def bytes_of(self, name: str, limit: int) -> bytes:
        """Content of a small member."""
        info = self._info(name)
        if info.file_size > limit:
            raise Refusal(f"its member {shown(name)} has {info.file_size:,} bytes")
        try:
            with self.archive.open(info) as file:
                data = file.read(info.file_size)
        except Exception as error:  # of zlib and zipfile
            raise Damaged(f"its member {shown(name)} is damaged") from error
        if len(data) != info.file_size:
            raise Damaged(f"its member {shown(name)} is truncated")
        return data

    def get(self, key: str, nbytes: int) -> UntypedStorage:
        """Storage with a key, memory-mapped or decompressed."""
        info = self._info(f"data/{key}")
        if info.file_size != nbytes:
            raise Damaged(
                f"its storage {shown(key)} has {info.file_size:,} bytes, expected {nbytes:,}"
            )
        if info.compress_type == zipfile.ZIP_STORED:
            start = self._start(info)
            mapped = self.region.mapped(start, nbytes)
            return self._copy(start, nbytes) if mapped is None else mapped
        memory, target = _allocate(nbytes)
        try:
            with self.archive.open(info) as file:
                done = 0
                while done < nbytes:
                    part = file.read(min(2**20, nbytes - done))
                    if not part:
                        raise Damaged(f"its storage {shown(key)} is truncated")
                    target[done : done + len(part)] = part
                    done += len(part)
                file.read(1)  # verifies the checksum
        except Damaged:
            raise
        except Exception as error:  # of zlib and zipfile
            raise Damaged(f"its storage {shown(key)} is damaged") from error
        return memory

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Offset of the data of an uncompressed member, from its local header."""
        self.file.seek(info.header_offset)
        header = self.file.read(_LOCAL_HEADER)
        if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
            raise Damaged(f"its member {shown(info.filename)} is not at the given position")
        if struct.unpack("<H", header[8:10])[0] != info.compress_type:
            raise Damaged(f"its member {shown(info.filename)} has two compression methods")
        start = info.header_offset + _LOCAL_HEADER + sum(struct.unpack("<HH", header[26:30]))
        if start + info.file_size > self.region.size:
            raise Damaged("it is truncated")
        return start

    def _copy(self, start: int, nbytes: int) -> UntypedStorage:
        memory, target = _allocate(nbytes)
        self.file.seek(start)
        self.file.read_into(target)
        return memory


def _allocate(nbytes: int) -> tuple[UntypedStorage, memoryview]:
    values = torch.empty(nbytes, dtype=torch.uint8)
    view: Any = values.numpy()
    return values.untyped_storage(), memoryview(view)


# ------------------------------------------------------------ legacy format


class _Sizes:
    """Records the sizes of storages and returns uninitialised memory."""

    def __init__(self, size: int) -> None:
        self.size, self.total = size, 0
        self.found: dict[str, int] = {}

    def get(self, key: str, nbytes: int) -> UntypedStorage:
        self.found[key] = max(nbytes, self.found.get(key, 0))
        self.total += nbytes
        if self.total > OVERLAP * self.size:
            raise Damaged("it is truncated")
        return torch.empty(nbytes, dtype=torch.uint8).untyped_storage()


class _Values:
    def __init__(self, size: int, values: dict[str, UntypedStorage]) -> None:
        self.size, self.values = size, values

    def get(self, key: str, nbytes: int) -> UntypedStorage:
        if key not in self.values or self.values[key].nbytes() != nbytes:
            raise Damaged(f"its storage {shown(key)} is missing or has inconsistent sizes")
        return self.values[key]


def _read_legacy(region: Region, foreign: bool) -> Any:
    with region.open() as file:
        data = file.read(min(region.size, PICKLE_BYTES))
    sizes = _Sizes(region.size)
    look = Meaning(sizes)
    magic, at = pickles.load(data, look.resolve)
    if magic != _MAGIC_NUMBER:
        raise Damaged("it is not a file of torch.save")
    _, at = pickles.load(data, look.resolve, start=at)  # the version
    system, at = pickles.load(data, look.resolve, start=at)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refusal("it has another byte order")
    _, end = pickles.load(data, look.resolve, look.storage, start=at)
    keys, start = pickles.load(data, look.resolve, start=end)
    values = _Values(region.size, _legacy_storages(region, start, keys, sizes.found))
    meaning = Meaning(values)
    value, _ = pickles.load(data, meaning.resolve, meaning.storage, start=at)
    return plain(value, foreign=foreign)


def _can_start_a_pickle(region: Region) -> bool:
    """Whether a refused file is a pickle by its first bytes; a text or an image is not.

    They are the version in protocol 2 and later. In the protocols 0 and 1, they begin an object, a
    container, or the number that every file of the legacy format starts with.
    """
    with region.open() as file:
        start = file.read(min(region.size, GLOBAL_LENGTH))
    return re.match(rb"\x80|[](})]|L\d+L\n|c[\w.]+\n[\w.]+\n", start) is not None


def _legacy_storages(
    region: Region, start: int, keys: Any, sizes: dict[str, int]
) -> dict[str, UntypedStorage]:
    """Read consecutive storages, each of which starts with its number of elements."""
    is_list = type(keys) is list and all(isinstance(key, (str, int)) for key in keys)
    if not is_list or {str(key) for key in keys} != set(sizes):
        raise Damaged("its list of storages is damaged")
    values: dict[str, UntypedStorage] = {}
    with region.open() as file:
        file.seek(start)
        for key in map(str, keys):
            (count,) = struct.unpack("<q", file.read(8).ljust(8, b"\xff"))
            nbytes = sizes[key]
            if count < 0 or (nbytes % count if count else nbytes) or file.at + nbytes > region.size:
                raise Damaged(f"its storage {shown(key)} is damaged or truncated")
            memory, target = _allocate(nbytes)
            file.read_into(target)
            values[key] = memory
    return values
