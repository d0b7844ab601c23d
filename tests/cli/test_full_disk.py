"""Full disks and read-only folders: one-line errors, and existing files are kept.

The tests set a limit on file sizes, which needs no root privileges and raises the same errors as a
full disk.
"""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from src.cli import main

Limit = Callable[[int], AbstractContextManager[None]]
CHECKPOINTS = "runs/tiny/version_0/checkpoints"


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with the recipe ``tiny.yaml`` and a completed run."""
    others = shutil.ignore_patterns("version_[1-9]*", "validate_*", "test_*", "predict_*", "bare*")
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True, ignore=others)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_at_the_start(folder: Path, error_of: Callable[..., str], largest_file: Limit) -> None:
    before = contents(folder)
    with largest_file(1000):
        text = error_of("fit", "-c", "tiny.yaml")
    assert "version_1" in text
    assert "File too large" in text
    assert contents(folder) == before
    assert not Path("runs/tiny/version_1").exists()


def test_at_a_checkpoint(folder: Path, error_of: Callable[..., str], largest_file: Limit) -> None:
    before = contents(folder)
    with largest_file(Path(CHECKPOINTS, "last.ckpt").stat().st_size // 2):
        text = error_of("fit", "-c", "tiny.yaml", "--ckpt_path=last", "--trainer.max_epochs=3")
    assert "version_1/checkpoints/" in text
    assert "could not be written (File too large" in text
    after = contents(folder)
    assert {path: after[path] for path in before} == before
    assert not [path for path in after if path.endswith((".ckpt", ".part")) and path not in before]


def test_at_a_table(
    folder: Path,
    error_of: Callable[..., str],
    largest_file: Limit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from src import files

    write_csv = files.write_csv

    def limited(path: Path, rows: object) -> None:
        with largest_file(100):
            write_csv(path, rows)

    monkeypatch.setattr(files, "write_csv", limited)
    text = error_of("fit", "-c", "tiny.yaml", "--ckpt_path=last", "--trainer.max_epochs=3")
    assert "version_1/metrics.csv could not be written (File too large" in text
    run = Path("runs/tiny/version_1")
    assert "metrics.csv" not in {path.name for path in run.iterdir()}
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 2  # is kept


@pytest.mark.parametrize("size", [1000, 5500])  # a table, a drawing
def test_at_predictions(
    folder: Path,
    error_of: Callable[..., str],
    largest_file: Limit,
    images: Path,
    size: int,
) -> None:
    arguments = ["predict", "-c", "tiny.yaml", "--ckpt_path=last"]
    with largest_file(size):
        text = error_of(*arguments, "--data.predict_dir", str(images / "val" / "red"))
    assert "predict_0/" in text
    assert "File too large" in text
    assert not [path for path in contents(folder) if path.endswith(".part")]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("onnx", ["model.onnx", "EXPORT.md"]),
        ("pt2", ["model.pt2", "EXPORT.md"]),
        ("safetensors", ["model.safetensors", "config.json"]),
    ],
)
def test_at_an_export(
    folder: Path, error_of: Callable[..., str], largest_file: Limit, kind: str, names: list[str]
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    out = folder / "out"
    out.mkdir()
    for name in names:
        (out / name).write_text("earlier")
    before = contents(out)
    arguments = ["-c", "tiny.yaml", "--ckpt_path=last", f"--out={out}", "--format", kind]
    with largest_file(3000):
        text = error_of("export", *arguments)
    assert text.startswith(str(out))
    assert "earlier export" not in text  # the files are replaced, not refused
    assert ".part" not in text
    assert contents(out) == before
    assert not [path for path in out.iterdir() if path.is_dir()]


def test_at_consolidate(folder: Path, error_of: Callable[..., str], largest_file: Limit) -> None:
    output = folder / "whole.ckpt"
    output.write_text("earlier")
    with largest_file(3000):
        text = error_of(
            "consolidate", f"{CHECKPOINTS}/last.ckpt", "--output", str(output), "--force"
        )
    assert "whole.ckpt could not be written (File too large" in text
    assert "The previous whole.ckpt is intact" in text
    assert output.read_text() == "earlier"


def test_at_prepare(
    folder: Path, error_of: Callable[..., str], largest_file: Limit, images: Path
) -> None:
    arguments = ["prepare", "from-folder", str(images / "val"), "--name=mine", "--mode=copy"]
    with largest_file(500):
        assert "data/own/mine could not be written" in error_of(*arguments)
    assert list(Path("data/own").iterdir()) == []
    assert main(arguments) == 0
    before = contents(Path("data/own"))
    with largest_file(500):
        error_of(*arguments, "--seed=1")
    assert contents(Path("data/own")) == before  # also the earlier split
    toy = ["prepare", "toy", "--root=toy", "--train=1", "--val=1", "--predict=1", "--size=32"]
    with largest_file(500):
        assert "toy/imagenet/" in error_of(*toy)
    assert list(Path("toy").iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "-c", "tiny.yaml", "--trainer.default_root_dir=file/runs"],
        ["validate", "-c", "tiny.yaml", "--trainer.default_root_dir=file/runs"],
        ["predict", "--name=tiny", "--data.predict_dir=images", "--predictions.folder=file/x"],
        ["export", "-c", "tiny.yaml", "--ckpt_path=last", "--out=file/x", "--format=safetensors"],
        ["consolidate", f"{CHECKPOINTS}/last.ckpt", "--output=file/x"],
        ["prepare", "from-folder", "images", "--out=file/x"],
        ["prepare", "toy", "--root=file/x"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_where_nothing_can_be_written(
    folder: Path, error_of: Callable[..., str], images: Path, arguments: list[str]
) -> None:
    Path("file").write_text("no folder")
    shutil.copytree(images / "val", "images")
    text = error_of(*arguments)
    assert "Not a directory" in text
    assert Path("file").read_text() == "no folder"
