"""Atomic writes, and escaped formulas in tables."""

import ast
import csv
import errno
import os
import pickle
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src import files
from src.errors import UserError

Limit = Callable[[int], AbstractContextManager[None]]
SOURCES = sorted((Path(__file__).parents[1] / "src").rglob("*.py"))


WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: files.write_text(path, "x" * 50_000),
    "json": lambda path: files.write_json(path, ["x" * 50_000]),
    "csv": lambda path: files.write_csv(path, [["x" * 50_000]]),
    "image.png": lambda path: files.write_image(
        path, Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200), np.uint8))
    ),
    "ckpt": lambda path: files.write_with(path, lambda f: torch.save(torch.zeros(50_000), f)),
    "safetensors": lambda path: files.write_tensors(path, {"x": torch.zeros(50_000)}, {}),
    "pt2": lambda path: files.write_with(
        path,
        lambda f: torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(9),)), f),
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_keeps_the_previous_file(
    tmp_path: Path, kind: str, largest_file: Limit
) -> None:
    path = tmp_path / "deep" / kind
    with largest_file(1000), pytest.raises(UserError, match="could not be written") as caught:
        WRITERS[kind](path)
    assert "intact" not in str(caught.value)
    assert list((tmp_path / "deep").iterdir()) == []
    path.write_bytes(b"earlier")
    with largest_file(1000), pytest.raises(UserError, match=f"The previous {kind} is intact"):
        WRITERS[kind](path)
    assert path.read_bytes() == b"earlier"
    assert list((tmp_path / "deep").iterdir()) == [path]
    WRITERS[kind](path)
    assert path.stat().st_size > 1000
    assert list((tmp_path / "deep").iterdir()) == [path]


def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    files.write_text(path, "a")
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o640)
    link.symlink_to(path)
    files.write_text(link, "b")
    assert link.is_symlink()
    assert path.read_text() == "b"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_tensor_file_has_the_permissions_of_other_files(tmp_path: Path) -> None:
    files.write_text(tmp_path / "text", "a")
    files.write_tensors(tmp_path / "new", {"a": torch.zeros(1)}, {})
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("text", "new")]
    assert modes[0] == modes[1]
    (tmp_path / "new").chmod(0o640)
    files.write_tensors(tmp_path / "new", {"a": torch.zeros(1)}, {})
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def fail_in_file(path: Path, error: type[BaseException]) -> None:
    with files.whole_file(path) as part:
        part.write_text("half")
        raise error


def fail_in_folder(path: Path, error: type[BaseException]) -> None:
    with files.whole_folder(path) as folder:
        (folder / "a").write_text("half")
        raise error


@pytest.mark.parametrize("fail", [fail_in_file, fail_in_folder])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_or_ctrl_c_leaves_no_temporary_file(
    tmp_path: Path, fail: Callable[..., None], error: type[BaseException]
) -> None:
    with pytest.raises(error):
        fail(tmp_path / "new", error)
    assert list(tmp_path.iterdir()) == []


def test_names_can_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    files.write_text(tmp_path / ("a" * 255), "text")
    with pytest.raises(UserError, match="name too long; use a shorter name"):
        files.write_text(tmp_path / ("a" * 256), "text")


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a device or a pipe"), (tmp_path, "a folder")):
        with pytest.raises(UserError, match=kind):
            files.write_text(path, "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="part of the path is a file"):
        files.write_text(tmp_path / "file" / "below", "text")


def test_entries_of_a_folder_are_replaced_together(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "part").mkdir(parents=True)
    (out / "part" / "old").touch()
    (out / "mine").touch()
    with files.whole_folder(out, last=["index"]) as work:
        (work / "index").touch()
        (work / "part").mkdir()
        (work / "part" / "new").touch()
        assert (out / "part" / "old").exists()  # until the block ends
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    assert names == ["index", "mine", "part", "part/new"]


def test_a_full_disk_within_a_folder_names_the_target(tmp_path: Path, largest_file: Limit) -> None:
    def fill() -> None:
        with files.whole_folder(tmp_path / "out") as work:
            files.write_text(work / "a.txt", "x" * 100)

    with largest_file(10), pytest.raises(UserError) as caught:
        fill()
    assert str(caught.value).startswith(
        f"{tmp_path}/out/a.txt could not be written (File too large"
    )
    assert list(tmp_path.iterdir()) == []


def test_append_writes_complete_lines(tmp_path: Path, largest_file: Limit) -> None:
    table = tmp_path / "table.csv"
    table.write_text("1\n")
    with largest_file(5), pytest.raises(UserError, match=r"table.csv could not be written"):
        files.append_text(table, "22222\n")
    assert table.read_text() == "1\n"
    files.append_text(table, "2\n")
    assert table.read_text() == "1\n2\n"


def test_formulas_in_names_are_escaped_and_numbers_are_not(tmp_path: Path) -> None:
    risky = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1"]
    plain = ["cat", "a=b", "-", "-0.5", "+1e-3", "nan", "", "two\nlines", 'say "x", y', "\udce9"]
    path = tmp_path / "table.csv"
    files.write_csv(path, [[*risky, *plain, -0.5, 3]])
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        (row,) = csv.reader(file)
    assert row == [f"'{text}" for text in risky] + plain + ["-0.5", "3"]


def test_the_message_is_the_same_with_workers() -> None:
    error = files.NotWrittenError("a.txt", OSError(errno.ENOSPC, "No space left on device"))
    text = "a.txt could not be written (No space left on device; free some disk space)."
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == text


def test_disk_errors_wrapped_by_libraries_are_found() -> None:
    error = ValueError("you tried to log 1")
    error.__cause__ = OSError(errno.EROFS, "Read-only file system", "/data/x\n")
    expected = r"/data/x\n: Read-only file system; choose another folder."
    assert files.disk_problem(error) == expected
    assert files.disk_problem(ValueError("other")) is None


WRITING = {
    *("write_text", "write_bytes", "touch", "tofile", "dump", "to_csv", "copyfile", "copy2"),
    *("save", "savez", "savefig", "save_file"),
}


def writes_directly(node: ast.Call) -> bool:
    """Whether a call writes to a path: `open` with a mode, `write_text`, `torch.save` etc."""
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = function.value if isinstance(function, ast.Attribute) else None
    if isinstance(owner, ast.Name) and owner.id == "files":
        return False
    values = [*node.args, *(keyword.value for keyword in node.keywords)]
    modes = [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
    if name == "open":
        return any(set(mode) & set("wax+") and len(mode) <= 3 for mode in modes)
    return name in WRITING


def is_guarded(call: ast.Call, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether a call is inside `write_with` or `whole_file` of `files`."""
    node: ast.AST | None = call
    while node is not None:
        calls = [node] if isinstance(node, ast.Call) else []
        if isinstance(node, ast.With):
            calls = [item.context_expr for item in node.items]
        for found in calls:
            if ast.unparse(found).startswith(("files.write_with", "files.whole_file(")):
                return True
        node = parents.get(node)
    return False


# Calls of other libraries that use the helpers above, or do not write files.
NO_FILES = {
    ("callbacks/run_folder.py", "lightning_logger.save()"),  # MetricsTable
    (
        "strategies.py",
        "save(parts, checkpoint_id=folder)",
    ),  # into a folder that is renamed when complete
    ("export/files.py", "exported.save(path, external_data=size > LARGEST_SINGLE_FILE)"),  # also
    ("cli/demo_server.py", "result.draw().save(file, 'PNG')"),  # in memory
    ("serialization/parallel.py", "torch.save(self.folder.value(key), written)"),  # in memory
    (
        "data/toy/image_text.py",
        "Image.fromarray(drawn.image).save(buffer, format='JPEG', quality=92)",
    ),  # in memory
    ("cli/app.py", "parser.dump(config, skip_none=False)"),  # returns text
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(SOURCES[0].parent)))
def test_files_are_written_through_the_helper_only(path: Path) -> None:
    inside = str(path.relative_to(SOURCES[0].parent))
    if inside == "files.py":
        return
    tree = ast.parse(path.read_text())
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and writes_directly(node) and not is_guarded(node, parents)
    ]
    assert not [text for text in found if (inside, text) not in NO_FILES]


@pytest.mark.parametrize(
    ("size", "text"),
    [(312, "312 B"), (1912, "1.9 kB"), (999_999, "1.0 MB"), (4_360_000_000, "4.36 GB")],
)
def test_sizes_are_readable(size: int, text: str) -> None:
    assert files.readable_size(size) == text
