"""Ways to damage a file: blindly, or knowing its form so that readers get further."""

from __future__ import annotations

import copy
import json
import random
import struct
import zlib
from typing import Any

_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_PNG_START = b"\x89PNG\r\n\x1a\n"


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """One to eight changes: bytes, numbers at the edge of a type, pieces removed or doubled."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        if not data:
            break
        at = rng.randrange(len(data))
        length = min(rng.choice((1, 2, 4, 16, 300)), len(data) - at)
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            size = rng.choice((1, 2, 4))
            order = rng.choice(("little", "big"))
            value = rng.choice(_EDGES) % (1 << 8 * size)
            data[at : at + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def damage_exif(rng: random.Random, content: bytes) -> bytes:
    """Mostly damage to the metadata, which lies in the first bytes of a JPEG file."""
    cut = min(len(content), 600)
    if rng.random() < 0.2:
        return damage_bytes(rng, content)
    return damage_bytes(rng, content[:cut]) + content[cut:]


def damage_png(rng: random.Random, content: bytes) -> bytes:
    """Damage to the chunks of a PNG file, with checksums that are right again."""
    if rng.random() < 0.15:
        return damage_bytes(rng, content)
    chunks = png_chunks(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(chunks))
        name, data = chunks[at]
        kind = rng.randrange(8)
        if kind < 4:
            chunks[at] = (name, damage_bytes(rng, data))
        elif kind == 4:
            chunks.insert(rng.randrange(len(chunks) + 1), (name, data))
        elif kind == 5 and len(chunks) > 1:
            del chunks[at]
        elif kind == 6:
            chunks[at] = (name, _another_header(rng) if name == b"IHDR" else data * 3)
        else:
            extra = rng.choice((b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tRNS", b"PLTE", b"acTL"))
            body = b"k\0\0" + zlib.compress(bytes(rng.choice((9, 9000, 9_000_000))))
            chunks.insert(min(1, len(chunks)), (extra, body))
    return _PNG_START + b"".join(png_chunk(name, data) for name, data in chunks)


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Names and data of the chunks of an intact PNG file."""
    chunks, at = [], len(_PNG_START)
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _another_header(rng: random.Random) -> bytes:
    sides = [rng.choice((0, 1, 7, 64, 5000, 13000, 65536, 2**31 - 1, 2**32 - 1)) for _ in "wh"]
    depth, colour = rng.choice((0, 1, 2, 4, 8, 16, 32)), rng.choice((0, 1, 2, 3, 4, 6, 9))
    return struct.pack(">IIBBBBB", *sides, depth, colour, 0, 0, rng.choice((0, 1, 2)))


_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, 1e8, 1e10, 1e300, -1e10, float("nan"), float("inf")),
    *(10**19, 2**31, 2**32, 2**63, -(2**63), 10**400),
    *("", "1", "x" * 300, "a" * 5000, "../../x.png", "/etc/passwd", "a\0b", "\ud800"),
    *([], {}, [None], [[]], [1, 2], [1e10] * 8, [[1e9, 0, 0, 1e9, 5, 5]], [[0] * 7]),
    *([[5, 5, 20, 5, 20, 20]] * 50, [[0, 0, 60, 60] * 500]),
    {"size": [48, 64], "counts": [3072]},
    {"size": [48, 64], "counts": [2**63 - 1, 2**63 - 1, 2 + 3072]},
    {"size": [48, 64], "counts": "0"},
    {"size": [48, 64], "counts": "~~~"},
    {"size": [2**20, 2**20], "counts": [2**40]},
    {"size": [48, 64], "counts": [-1, 3073]},
    {"size": [48.0, 64], "counts": [3072.0]},
)


def damage_json(rng: random.Random, content: bytes) -> bytes:
    """Values, keys and entries replaced, removed and doubled; sometimes text that is no json."""
    if rng.random() < 0.1:
        return damage_bytes(rng, content)
    tree = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        holder, key = rng.choice(list(_places(tree)))
        kind = rng.randrange(10)
        if kind < 6:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))
        elif kind == 6:
            del holder[key]
        elif kind == 7 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 8:
            holder[key] = [holder[key]]
        else:
            other, other_key = rng.choice(list(_places(tree)))
            holder[key] = copy.deepcopy(other[other_key]) if other is not holder else None
    text = json.dumps(tree)
    kind = rng.randrange(20)
    if kind == 0:
        text = text.replace(str(rng.choice((900, 48, 64, 5))), rng.choice(("1" * 5000, "1e999")), 1)
    elif kind == 1:
        text = rng.choice(("[", '{"images":')) * 200_000 + text
    elif kind == 2:
        return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")), "surrogatepass")
    return text.encode()


def _places(tree: Any) -> Any:
    """Every holder and key in nested lists and objects."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(pairs):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from _places(value)
