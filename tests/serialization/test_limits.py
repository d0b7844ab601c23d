"""Small files that would need much time, memory or recursion are rejected quickly."""

import pickle
import resource
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch

from src.errors import UserError
from src.serialization import read_weights

WEIGHT = torch.arange(6.0).reshape(2, 3)


@pytest.fixture
def refused(tmp_path, request):
    """Check that a file is refused within 20 seconds and 1 GB of additional memory."""

    def read(path: Path, match: str) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.monotonic()
        with pytest.raises(UserError, match=match) as caught:
            read_weights(path)
        assert time.monotonic() - start < 20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20
        assert "\n" not in str(caught.value)
        assert path.name in str(caught.value)

    return read


@pytest.fixture
def archive(tmp_path):
    """Write an archive of torch.save with a given pickle and storages."""

    def write(pickled: bytes, **storages: bytes) -> Path:
        path = tmp_path / "file.pth"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", pickled)
            for key, values in storages.items():
                file.writestr(f"archive/data/{key.removeprefix('s')}", values)
        return path

    return write


def tensor(size, stride, offset=0, count=4, key="0", kind="torch FloatStorage"):
    """Pickle of a dictionary with one tensor with arbitrary claims."""
    numbers = lambda values: b"(" + b"".join(integer(v) for v in values) + b"t"  # noqa: E731
    module, name = kind.split()
    reference = (
        b"(X\x07\x00\x00\x00storagec" + f"{module}\n{name}\n".encode()
        + text(key) + text("cpu") + integer(count) + b"tQ"
    )  # fmt: skip
    call = b"ctorch._utils\n_rebuild_tensor_v2\n("
    rest = integer(offset) + numbers(size) + numbers(stride) + b"\x89N"
    return b"\x80\x02}" + text("w") + call + reference + rest + b"tRs."


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value):
    raw = value.to_bytes(max(1, (value.bit_length() + 8) // 8), "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def test_the_pickles_in_this_module_are_valid(archive):
    values = torch.arange(4.0)
    content = read_weights(archive(tensor((2, 2), (2, 1)), s0=values.numpy().tobytes()))
    assert torch.equal(content["w"], values.reshape(2, 2))


def doubling(make: bytes, levels: int) -> bytes:
    """Pickle of a value with ``2 ** levels`` items, counted once per reference."""
    body = b"]q\x00"
    for level in range(levels):
        body += b"h" + bytes([level]) + b"h" + bytes([level]) + make + b"q" + bytes([level + 1])
    return body


LONG = text("a" * 2**20) + b"q\x000"
"""A long text with the number 0 in the memo, of which copies are made."""
COPIES = {
    "bytes of text": LONG + b"c_codecs\nencode\nq\x010" + b"h\x01(h\x00tR" * 5000,
    "dictionaries of pairs": (
        b"]q\x00(" + b"".join(b"J" + struct.pack("<i", i) + b"N\x86" for i in range(20_000))
        + b"e0" + b"ccollections\nOrderedDict\nq\x010" + b"h\x01(h\x00tR" * 2000
    ),
    "sets of a list": (
        b"]q\x00(" + b"".join(b"J" + struct.pack("<i", i) for i in range(20_000)) + b"e0"
        + b"cbuiltins\nset\nq\x010" + b"h\x01(h\x00tR" * 2000
    ),
    "names of classes": LONG + b"h\x00h\x00\x93" * 5000,
}  # fmt: skip
"""Values that a pickle makes again and again from the same text or list."""


def pair_with_the_hash(value: int, first: int) -> tuple[int, int] | None:
    """Pair of integers with a given hash (algorithm of CPython 3.8 to 3.14), if there is one."""
    one, two, five, mask = (
        11400714785074694791, 14029467366897019727, 2870177450012600261, 2**64 - 1,
    )  # fmt: skip
    rotate = lambda x, by: (x << by | x >> (64 - by)) & mask  # noqa: E731
    state = rotate((five + first * two) & mask, 31) * one & mask
    before = rotate((value - (2 ^ five ^ 3527539)) * pow(one, -1, 2**64) & mask, 33)
    second = (before - state) * pow(two, -1, 2**64) & mask
    return (first, second) if second < 2**61 - 1 else None


PAIRS = [pair for first in range(30_000) if (pair := pair_with_the_hash(12345, first))]
SAME_HASHES = b"".join(
    b"\x8a\x10" + (number * (2**61 - 1)).to_bytes(16, "little") + b"N" for number in range(9, 5000)
)
NESTED = {
    "lists in lists": b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
    "tuples in tuples": b"\x80\x02)" + b"\x85" * 50_000 + b".",
    "dictionaries in dictionaries": b"\x80\x02}" + b"K\x00}" * 3000 + b"s" * 3000 + b".",
    "tuples that double": b"\x80\x02}K\x01" + doubling(b"\x86", 60) + b"s.",
    "a tuple that doubles as a key": b"\x80\x02}" + doubling(b"\x86", 40) + b"K\x01s.",
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "a dictionary that holds itself": b"\x80\x02}q\x00K\x01h\x00s.",
    "a set of nested tuples": b"\x80\x02cbuiltins\nset\n]" + doubling(b"\x86", 30) + b"a\x85R.",
    "an integer of a megabyte": (
        b"\x80\x02}K\x01\x8b" + struct.pack("<I", 2**20) + b"\x01" * 2**20 + b"s."
    ),
    "many instructions": b"\x80\x02}(" + b"N" * 5_000_000 + b"u.",
    "pairs with the same hash": (
        b"\x80\x02}(" + b"".join(integer(a) + integer(b) + b"\x86N" for a, b in PAIRS) + b"u."
    ),
    "a storage of an endless kind": (
        b"\x80\x02" + doubling(b"\x86", 40) + b"(" + text("storage") + b"h\x28" + text("0")
        + text("cpu") + b"K\x01tQ."
    ),
    "a long key at every level": (
        b"\x80\x02" + text("k" * 2**24) + b"q\x000}" + b"h\x00}" * 90 + b"h\x00h\x00" + b"s" * 91
        + b"}q\x01h\x00h\x01s."
    ),
    **{name: b"\x80\x02" + made + b"." for name, made in COPIES.items()},
    "keys with the same hash": b"\x80\x02}(" + SAME_HASHES + b"u.",
    "text of protocol 0": b"(dp0\nI1\nI2\ns.",
    "an instruction for extensions": b"\x80\x02\x82\x01.",
    "an object of an old class": b"\x80\x02(cos\nsystem\nX\x01\x00\x00\x00ao.",
    "a huge length": b"\x80\x04\x8d" + b"\xff" * 8 + b".",
    "a mark that is missing": b"\x80\x02}u.",
    "a memo that is empty": b"\x80\x02h\x07.",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("form", ["zip", "old"])
def test_exponential_structures(kind, form, archive, refused, tmp_path):
    path = archive(NESTED[kind])
    if form == "old":
        with path.open("wb") as file:
            for part in (torch.serialization.MAGIC_NUMBER, 1001, {"little_endian": True}):
                pickle.dump(part, file, protocol=2)
            file.write(NESTED[kind])
    refused(path, "is refused|cannot be read")


def test_the_pairs_have_the_same_hash():
    assert len(PAIRS) > 2000
    assert {hash(pair) for pair in PAIRS} == {12345}


def test_a_list_of_endless_storage_names(tmp_path, refused):
    path = tmp_path / "file.pth"
    with path.open("wb") as file:
        for part in (torch.serialization.MAGIC_NUMBER, 1001, {"little_endian": True}, {}):
            pickle.dump(part, file, protocol=2)
        file.write(b"\x80\x02]q\x64" + doubling(b"\x86", 40) + b"0" * 40 + b"h\x64h\x28a.")
    refused(path, "list of storages is damaged")


def test_a_storage_is_decompressed_once(archive):
    parts = [tensor((4,), (1,), kind=f"torch {name}Storage") for name in ("Float", "Int")]
    bodies = [part[3 + len(text("w")) : -2] for part in parts]
    pickled = b"\x80\x02}(" + text("a") + bodies[0] + text("b") + bodies[1] + b"u."
    path = archive(pickled, s0=torch.arange(4.0).numpy().tobytes())
    content = read_weights(recompressed(path, zipfile.ZIP_DEFLATED))
    assert content["a"].tolist() == [0, 1, 2, 3]
    assert content["a"].data_ptr() == content["b"].data_ptr()


def test_a_large_memo_index_needs_no_memory(archive):
    assert read_weights(archive(b"\x80\x02}r\xff\xff\xff\x7f.")) == {}


TENSORS = {
    "more values than there are": tensor((3, 2), (2, 1)),
    "an offset beyond the end": tensor((1,), (1,), offset=4),
    "2 to the power of 60 values": tensor((2**60,), (1,)),
    "one value repeated to terabytes": tensor((2**40, 4), (0, 1)),
    "sizes whose product is too large": tensor((2**31, 2**31, 2**31), (0, 0, 0)),
    "a negative stride": tensor((2,), (-1,), offset=3),
    "a negative size": tensor((-2,), (1,)),
    "sizes and strides of other lengths": tensor((2, 2), (1,)),
    "forty dimensions": tensor((1,) * 40, (1,) * 40),
    "a storage of another size": tensor((2,), (1,), count=5),
    "a storage that is missing": tensor((2,), (1,), key="1"),
    "a storage elsewhere": tensor((2,), (1,), key="../../data.pkl"),
    "a storage of an unknown kind": tensor((2,), (1,), kind="torch QInt8Storage"),
    "a huge size of nothing": tensor((0, 2**55), (1, 1)),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_with_invalid_claims(kind, archive, refused):
    refused(archive(TENSORS[kind], s0=bytes(16)), "is refused|cannot be read")


def test_many_tensors_over_one_storage(archive, refused, tmp_path):
    base = torch.zeros(2**18)
    torch.save({str(i): base for i in range(10)}, tmp_path / "file.pth")
    assert len(read_weights(tmp_path / "file.pth")) == 10
    torch.save({str(i): base.view(-1) for i in range(400)}, tmp_path / "file.pth")
    refused(tmp_path / "file.pth", "share storages so often")


def recompressed(path: Path, method: int) -> Path:
    """Recompress an archive."""
    other = path.with_name("packed.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return other


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_recompressed_archives_are_read_correctly(method, tmp_path):
    expected = {str(i): torch.randn(400 + i) for i in range(20)}
    expected |= {"half": torch.randn(7).half(), "wide": torch.randn(5).double()}
    torch.save(expected, tmp_path / "file.pth")
    content = read_weights(recompressed(tmp_path / "file.pth", method))
    assert all(torch.equal(content[name], value) for name, value in expected.items())


def test_unknown_compression_is_refused(tmp_path, refused):
    torch.save({"w": WEIGHT}, tmp_path / "file.pth")
    refused(recompressed(tmp_path / "file.pth", zipfile.ZIP_LZMA), "unknown compression")


def test_a_zip_bomb_is_refused(tmp_path, refused):
    torch.save({"w": torch.zeros(2**28, dtype=torch.uint8)}, tmp_path / "file.pth")
    refused(recompressed(tmp_path / "file.pth", zipfile.ZIP_DEFLATED), "would be decompressed")


def test_duplicate_members_are_refused(tmp_path, refused):
    torch.save({"w": WEIGHT}, tmp_path / "file.pth")
    with (
        zipfile.ZipFile(tmp_path / "file.pth", "a") as file,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        file.writestr("file/data/0", bytes(24))
    refused(tmp_path / "file.pth", "same name")


def test_another_byte_order_is_refused(tmp_path, refused):
    path = tmp_path / "file.pth"
    torch.save({"w": WEIGHT}, path)
    other = tmp_path / "other.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"big" if name.endswith("byteorder") else old.read(name))
    refused(other, "byte order")


def test_only_regular_files_are_read(tmp_path, refused):
    import os

    os.mkfifo(tmp_path / "pipe.pth")
    refused(tmp_path / "pipe.pth", "not a regular file")
    (tmp_path / "link.pth").symlink_to("/dev/zero")
    refused(tmp_path / "link.pth", "not a regular file")


@pytest.mark.parametrize(
    "header",
    [
        b'{"w": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "w": 1}',
        b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, ' + b"9" * 30 + b"]}}",
        b"[" * 100_000,
        b'{"w": 5}',
        b"{}garbage",
    ],
)
def test_headers_of_safetensors(header, tmp_path, refused):
    path = tmp_path / "file.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refused(path, "is refused|cannot be read")


def test_a_huge_header_is_refused(tmp_path, refused):
    path = tmp_path / "file.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 90_000_000))
        file.truncate(100_000_000)
    refused(path, "header has 90,000,000 bytes")
