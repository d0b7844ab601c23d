"""What is found in tars, also in damaged and hostile ones."""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from src.data.tars.files import LocalTar
from src.data.tars.headers import DamagedTarError, members
from src.data.tars.scan import MAX_TEXT_BYTES, Fields, Scanned, scan
from tests.data.tars.pairs import pair

Write = Callable[..., Path]


def scanned(path: Path, fields: Fields = Fields()) -> Scanned:  # noqa: B008
    return scan(LocalTar(path), fields)


def content(path: Path, block: int, size: int) -> bytes:
    return path.read_bytes()[block * 512 : block * 512 + size]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_positions_are_those_of_the_members(tmp_path: Path, write_tar: Write, format: int) -> None:
    both = pair("00001", similarity=0.3) | pair("folder/" + "long" * 20 + "/ü00002", "ein Wort")
    path = write_tar(tmp_path / "0.tar", both, format)
    found = scanned(path, Fields(score="similarity", unique="key"))
    images = [content(path, *row) for row in found.rows[["image_block", "image_size"]].tolist()]
    texts = [content(path, *row) for row in found.rows[["text_block", "text_size"]].tolist()]
    assert images == [value for name, value in both.items() if name.endswith("jpg")]
    assert texts == [b"caption of 00001", b"ein Wort"]
    assert found.rows["width"].tolist() == [40, 40]
    assert found.rows["score"][0] == pytest.approx(0.3)
    assert len(set(found.rows["identity"].tolist())) == 2
    assert not found.left_out


def test_incomplete_samples_are_counted(tmp_path: Path, write_tar: Write) -> None:
    parts = pair("1")
    members = {"0.txt": b"alone", **parts, "2.jpg": parts["1.jpg"], "3.jpg": b"", "3.txt": b"x"}
    members |= {"4.jpg": parts["1.jpg"], "4.txt": b" \n", "5.jpg": parts["1.jpg"]}
    members |= {"5.txt": b"x" * (MAX_TEXT_BYTES + 1)}
    found = scanned(write_tar(tmp_path / "0.tar", members))
    assert len(found.rows) == 1
    reasons = {"no image": 1, "no text": 2, "image empty": 1, "text too long": 1}
    assert found.left_out == reasons
    assert found.problems[0] == "0: no image"


def test_the_text_may_be_a_field_of_json(tmp_path: Path, write_tar: Write) -> None:
    parts = pair("1", alt="another text")
    no_txt = {name: value for name, value in parts.items() if not name.endswith("txt")}
    path = write_tar(tmp_path / "0.tar", no_txt)
    assert scanned(path).rows["characters"].tolist() == [len("caption of 1")]
    assert scanned(path, Fields(text="alt")).rows["characters"].tolist() == [len("another text")]
    assert scanned(path, Fields(text="missing")).left_out == {"no text": 1}


@pytest.mark.parametrize("facts", [b"[" * 100_000, b"{", b"[1]", b'{"width": "x"}', b"\xff"])
def test_damaged_json_is_ignored(tmp_path: Path, write_tar: Write, facts: bytes) -> None:
    path = write_tar(tmp_path / "0.tar", pair("1") | {"1.json": facts})
    found = scanned(path, Fields(score="similarity"))
    assert found.rows["width"].tolist() == [0]


def test_links_devices_and_folders_are_passed_over(tmp_path: Path, write_tar: Write) -> None:
    path = write_tar(tmp_path / "0.tar", pair("1"))
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("2.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert len(scanned(path).rows) == 1


def test_names_are_never_paths(tmp_path: Path, write_tar: Write) -> None:
    both = {f"../../{name}": value for name, value in pair("1").items()}
    found = scanned(write_tar(tmp_path / "a" / "b" / "0.tar", both))
    assert len(found.rows) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["0.tar", "a", "b"]


def test_pairs_before_a_damaged_part_are_kept(tmp_path: Path, write_tar: Write) -> None:
    path = write_tar(tmp_path / "0.tar", pair("1") | pair("2") | pair("3"))
    whole = path.read_bytes()
    third = whole.rindex(b"3.jpg")
    path.write_bytes(whole[: third + 700])
    found = scanned(path)
    assert len(found.rows) == 2
    assert found.left_out == {"tar damaged": 1}
    assert "cut off" in found.problems[0]
    path.write_bytes(whole[:third] + b"X" + whole[third + 1 :])
    assert "damaged" in scanned(path).problems[0]


def header(name: bytes = b"1.jpg", size: bytes = b"00000000010\0", kind: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)], block[124:136], block[156:157] = name, size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "block",
    [
        header(size=b"\xff" * 12),
        header(size=b"77777777777\0"),
        header(size=b"-0000000001\0"),
        header(size=b"\x80" + b"\0" * 3 + b"\xff" * 8),
        header(size=b"not a size!!"),
        header(size=b"00010000000\0", kind=b"L"),
        header(size=b"00010000000\0", kind=b"x"),
        header(kind=b"S"),
        os.urandom(512),
        header()[:300],
    ],
)
def test_hostile_headers_end_the_tar(tmp_path: Path, block: bytes) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(block + b"\0" * 511)
    with pytest.raises(DamagedTarError):
        list(members(LocalTar(path)))
    assert len(scanned(path).rows) == 0


def test_members_are_those_of_tarfile(tmp_path: Path, write_tar: Write) -> None:
    names = ["a", "b/" * 60 + "c", "d" * 150, "é", "f" * 100]
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        chosen = names if format != tarfile.USTAR_FORMAT else ["a", "b/" * 60 + "c", "é"]
        path = write_tar(tmp_path / "0.tar", dict.fromkeys(chosen, b"content"), format)
        with tarfile.open(path) as archive:
            expected = [(info.name, info.offset_data, info.size) for info in archive]
        assert [tuple(member) for member in members(LocalTar(path))] == expected


def test_files_of_webdataset_are_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as writer:
        for number in range(3):
            image = pair("x", number=number)["x.jpg"]
            facts = json.dumps({"caption": "in json"}).encode()
            writer.write({"__key__": f"k{number}", "jpg": image, "txt": "a", "json": facts})
    assert len(scanned(tmp_path / "0.tar").rows) == 3
