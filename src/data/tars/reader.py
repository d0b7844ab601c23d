"""Read single pairs of indexed tars."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import Any, NamedTuple

from numpy.typing import NDArray

from src.data.tars.cache import TarCache
from src.data.tars.files import LocalTar, is_remote, unreadable
from src.data.tars.headers import BLOCK, name_at
from src.data.tars.index import TarIndex
from src.data.tars.scan import JSON_FLAG, MAX_TEXT_BYTES, text_of
from src.errors import UserError
from src.files import on_one_line

_TRIES = 3


class Pair(NamedTuple):
    """Content of an image file and its text."""

    image: bytes
    text: str


class PairReader:
    """Reader of one source, which keeps the tars in use open.

    Args:
        index: Index of the source.
        max_open: Tars that are open at once.
        cache: Where copies of remote tars are kept.
    """

    def __init__(self, index: TarIndex, max_open: int, cache: TarCache | None = None) -> None:
        self.index, self.max_open, self.cache = index, max_open, cache
        self._open: OrderedDict[int, tuple[LocalTar, NDArray[Any]]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files, which another process opens again."""
        return {**self.__dict__, "_open": OrderedDict()}

    def read(self, tar: int, number: int) -> Pair:
        """A pair.

        Args:
            tar: Number of the tar.
            number: Number of the pair in the tar.

        Raises:
            UserError: If the tar cannot be read or has changed.
        """
        file, rows = self._opened(tar)
        image_block, image_size, text_block, text_size = rows[number].item()
        is_json, text_size = bool(text_size & JSON_FLAG), text_size & ~JSON_FLAG
        try:
            image = file.read_at(image_block * BLOCK, image_size)
            text = file.read_at(text_block * BLOCK, min(text_size, MAX_TEXT_BYTES))
        except OSError as error:
            raise unreadable(self.index.url(tar), error) from error
        return Pair(image, text_of(text, is_json, self.index.text))

    def name(self, tar: int, number: int) -> str:
        """A pair for a message: the tar and the image member."""
        file, rows = self._opened(tar)
        member = name_at(file, int(rows["image_block"][number]) * BLOCK)
        return f"{on_one_line(self.index.url(tar))}:{on_one_line(member)}"

    def _opened(self, tar: int) -> tuple[LocalTar, NDArray[Any]]:
        if tar in self._open:
            self._open.move_to_end(tar)
            return self._open[tar]
        url, size = self.index.url(tar), int(self.index.bytes[tar])
        try:
            file = self._file(url, size)
        except OSError as error:
            raise unreadable(url, error) from error
        if file.size != size:
            file.close()
            raise UserError(
                f"The tar {on_one_line(url)} has changed since it was indexed ({file.size} bytes, "
                f"then {size}). Run `python -m src prepare index-tars` again."
            )
        # A copy of the mapped rows, so that closing the tar frees their memory.
        self._open[tar] = (file, self.index.rows(tar).copy())
        while len(self._open) > self.max_open:
            self._open.popitem(last=False)[1][0].close()
        return self._open[tar]

    def _file(self, url: str, size: int) -> LocalTar:
        for _ in range(_TRIES - 1):
            with suppress(FileNotFoundError):  # another process may delete a copy to make room
                return LocalTar(self._local(url, size))
        return LocalTar(self._local(url, size))

    def _local(self, url: str, size: int) -> str:
        if not is_remote(url):
            return url
        if self.cache is None:
            raise UserError(
                f"The tar {on_one_line(url)} is remote; set data.cache_dir to a folder on a local "
                "disk, where tars are kept while they are in use."
            )
        return str(self.cache.local(url, size))
