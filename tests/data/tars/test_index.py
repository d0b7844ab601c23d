"""``prepare index-tars``: building, resuming, filters, and errors."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from src.cli import main
from src.data.tars import build
from src.data.tars.cache import TarCache
from src.data.tars.filters import Filters, repeated
from src.data.tars.index import read_index
from src.data.tars.reader import PairReader
from src.errors import UserError
from tests.data.tars.pairs import pair

Write = Callable[..., Path]


@pytest.fixture
def tars(tmp_path: Path, write_tar: Write) -> Path:
    """Folder with three tars of 4, 2 and 3 pairs."""
    for tar, count in enumerate((4, 2, 3)):
        members = {}
        for number in range(count):
            key = f"{tar:05d}{number:04d}"
            facts = {"similarity": 0.1 * number, "url": f"http://host/{number}"}
            members |= pair(key, number=number, **facts)
        write_tar(tmp_path / "tars" / f"{tar:05d}.tar", members)
    return tmp_path / "tars"


def index_tars(tars: Path | str, out: Path, *options: str) -> int:
    return main(["prepare", "index-tars", str(tars), "--out", str(out), "--workers", "1", *options])


def test_every_pair_is_read_by_its_number(tars: Path, tmp_path: Path) -> None:
    assert index_tars(tars, tmp_path / "index") == 0
    index = read_index(tmp_path / "index")
    assert index.sizes.tolist() == [4, 2, 3]
    reader = PairReader(index, max_open=1)
    for tar, number in ((0, 3), (2, 0), (1, 1), (0, 0)):
        found = reader.read(tar, number)
        assert found.text == f"caption of {tar:05d}{number:04d}"
        assert found.image == pair("x", number=number)["x.jpg"]
    assert reader.name(2, 1) == f"{tars}/00002.tar:000020001.jpg"


def test_patterns_and_urls(tars: Path, tmp_path: Path) -> None:
    assert index_tars(tars / "{00000..00001}.tar", tmp_path / "braces") == 0
    assert read_index(tmp_path / "braces").names == ["00000.tar", "00001.tar"]
    assert index_tars(tars / "*2.tar", tmp_path / "star") == 0
    assert read_index(tmp_path / "star").names == ["00002.tar"]
    assert index_tars(f"file://{tars}", tmp_path / "url") == 0
    index = read_index(tmp_path / "url")
    assert len(index) == 9
    with pytest.raises(UserError, match=r"is remote; set data\.cache_dir"):
        PairReader(index, 2).read(0, 0)


def test_a_copy_that_another_process_deletes_is_made_again(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert index_tars(f"file://{tars}", tmp_path / "index") == 0
    local, deleted = TarCache.local, []

    def deleted_once(cache: TarCache, url: str, size: int) -> Path:
        path = local(cache, url, size)
        if not deleted:
            path.unlink()
            deleted.append(path)
        return path

    monkeypatch.setattr(TarCache, "local", deleted_once)
    reader = PairReader(read_index(tmp_path / "index"), 2, TarCache(tmp_path / "cache", 10**9))
    assert reader.read(0, 0).text
    assert deleted


def test_the_index_moves_with_its_tars(tars: Path, tmp_path: Path) -> None:
    assert index_tars(tars, tars / "index") == 0
    tars.rename(tmp_path / "moved")
    assert PairReader(read_index(tmp_path / "moved" / "index"), 2).read(0, 0).text
    (tmp_path / "moved" / "00000.tar").rename(tmp_path / "00000.tar")
    index = read_index(tmp_path / "moved" / "index", root=str(tmp_path))
    assert PairReader(index, 2).read(0, 0).text


def test_tars_are_read_again_only_if_they_change(
    tars: Path, tmp_path: Path, write_tar: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert index_tars(tars, tmp_path / "index") == 0
    scans = []
    scan = build.scan
    monkeypatch.setattr(build, "scan", lambda tar, fields: scans.append(1) or scan(tar, fields))
    write_tar(tars / "00003.tar", pair("new"))
    assert index_tars(tars, tmp_path / "index", "--min-characters", "5") == 0
    assert len(scans) == 1
    write_tar(tars / "00000.tar", pair("again"))
    assert index_tars(tars, tmp_path / "index") == 0
    assert len(scans) == 2
    assert read_index(tmp_path / "index").sizes.tolist() == [1, 2, 3, 1]
    part = next((tmp_path / "index" / "parts").iterdir())
    part.write_bytes(part.read_bytes()[:-1])
    assert index_tars(tars, tmp_path / "index") == 0
    assert len(scans) == 3


def test_a_changed_tar_is_refused_when_it_is_read(
    tars: Path, tmp_path: Path, write_tar: Write
) -> None:
    assert index_tars(tars, tmp_path / "index") == 0
    write_tar(tars / "00000.tar", pair("1") | pair("2"))
    with pytest.raises(UserError, match="has changed since it was indexed"):
        PairReader(read_index(tmp_path / "index"), 2).read(0, 0)


def test_filters_and_repetitions_are_counted(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "index"
    options = ["--score", "similarity", "--min-score", "0.05", "--unique", "url"]
    assert index_tars(tars, out, *options) == 0
    index = read_index(out)
    assert index.sizes.tolist() == [3, 0, 0]
    assert index.left_out == {"score too low": 3, "repeated": 3}
    assert "left out: 3 (repeated)" in capsys.readouterr().out
    assert index_tars(tars, out, "--min-side", "31") == 2
    assert "no pairs" in capsys.readouterr().err
    assert read_index(out).left_out == {"image too small": 9}


def test_portions_do_not_change_what_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from src.data.tars import filters
    from src.data.tars.scan import COLUMNS

    rows = np.zeros(40, COLUMNS)
    rows["identity"] = np.random.default_rng(0).integers(0, 12, 40)
    kept = np.ones(40, bool)
    kept[3] = False

    def parts() -> object:
        return iter([(rows[:25], kept[:25]), (rows[25:], kept[25:])])

    whole = repeated(parts, 40)
    monkeypatch.setattr(filters, "_HASHES_AT_ONCE", 7)
    assert (repeated(parts, 40) == whole).all()
    used = rows["identity"][kept & ~whole]
    named = used[used != 0]
    assert len(set(named.tolist())) == len(named)


def test_aspect_and_unknown_sizes() -> None:
    import numpy as np

    from src.data.tars.scan import COLUMNS

    rows = np.zeros(3, COLUMNS)
    rows["width"], rows["height"] = [90, 60, 0], [30, 20, 0]
    kept, counts = Filters(max_aspect=2.9).apply(rows)
    assert not kept.any()
    assert counts == {"image size unknown": 1, "image too elongated": 2}
    assert Filters(max_aspect=3).apply(rows)[0].tolist() == [True, True, False]


def test_unreadable_tars_are_reported(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tars / "{00000..00003}.tar"
    assert index_tars(names, tmp_path / "index") == 2
    error = capsys.readouterr().err
    assert "1 of 4 tars cannot be read" in error
    assert "there is no such file" in error
    assert index_tars(names, tmp_path / "index", "--skip-unreadable") == 0
    assert read_index(tmp_path / "index").left_out == {"tar unreadable": 1}
    assert "00003.tar" in (tmp_path / "index" / "problems.txt").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{tars}/{{1..", "--out", "i"], "braces of"),
        (["nowhere/*.tar", "--out", "i"], "There are no tars at nowhere/*.tar"),
        (["{tars}", "s3x://bucket/0.tar", "--out", "i"], "paths and URLs"),
        (
            ["s3x://bucket/0.tar", "--out", "i"],
            "expected a URL with one of the protocols file, http",
        ),
        (["{tars}", "--out", "i", "--min-side", "-1"], "--min-side accepts 0"),
        (["{tars}", "--out", "i", "--min-score", "0.3"], "--min-score needs --score"),
        (["{tars}", "--out", "i", "--workers", "0"], "--workers accepts"),
    ],
)
def test_mistakes(
    tars: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [option.format(tars=tars) for option in options]
    assert main(["prepare", "index-tars", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_or_damaged_index_is_one_sentence(tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    with pytest.raises(UserError, match="holds no index of tars"):
        read_index(out)
    assert index_tars(tars, out) == 0
    content = json.loads((out / "index.json").read_text())
    for change in (
        {"version": 2},
        {"tars": [["../../x.tar", 1, 9]]},
        {"tars": [["x.tar", 1, -9]]},
        {"tars": 3},
        {"tars": [["x.tar", 1, 10]]},
    ):
        (out / "index.json").write_text(json.dumps(content | change))
        with pytest.raises(UserError, match="is damaged or of another version"):
            read_index(out)


@pytest.mark.parametrize(
    "root",
    ["zip://inner::https://host/a.zip", "simplecache::s3://bucket", "memory://a", "../x://a"],
)
def test_an_index_opens_only_urls_of_known_protocols(tars: Path, tmp_path: Path, root: str) -> None:
    out = tmp_path / "index"
    assert index_tars(tars, out) == 0
    content = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps(content | {"root": root}))
    with pytest.raises(UserError, match=r"cannot be opened: expected a URL .* without '::'"):
        read_index(out)
    assert len(read_index(out, root=str(tars))) == 9


def test_a_name_in_an_index_cannot_chain_protocols(tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    assert index_tars(f"file://{tars}", out) == 0
    content = json.loads((out / "index.json").read_text())
    content["tars"][0][0] = "a::zip:/b.tar"
    (out / "index.json").write_text(json.dumps(content))
    reader = PairReader(read_index(out), 2, TarCache(tmp_path / "cache", 10**9))
    with pytest.raises(UserError, match="without '::'"):
        reader.read(0, 0)


def test_a_cache_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(UserError, match=r"data\.cache_dir .* cannot be used"):
            TarCache(folder, 1).local("file:///tar", 1)
