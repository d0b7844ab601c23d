"""Names in checkpoints, folders and options cannot lead outside the intended folders."""

import csv
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from src.cli import main


@pytest.fixture
def last(trained: Path) -> Path:
    return trained / "runs/tiny/version_0/checkpoints/last.ckpt"


def with_record(source: Path, target: Path, **record: Any) -> Path:
    """Write a checkpoint with a changed record of the best checkpoints."""
    content = torch.load(source, weights_only=True)
    key = next(key for key in content["callbacks"] if key.startswith("Checkpoint"))
    content["callbacks"][key] |= record
    torch.save(content, target)
    return target


def fit_on(checkpoint: Path) -> int:
    return main(
        ["fit", "-c", "tiny.yaml", "--ckpt_path", str(checkpoint), "--trainer.max_epochs=3"]
    )


@pytest.mark.parametrize(
    "name",
    [
        "runs/tiny/version_0/checkpoints/../../../../victim",
        "{folder}/victim",
        "victim/precious",
        "runs/tiny/version_0/checkpoints/../config.yaml",
        "runs/tiny/version_0/checkpoints",
        "file://{folder}/victim/precious",
        "memory://victim/precious",
        "~/victim",
        "victim\n",
        "",
    ],
)
def test_a_checkpoint_removes_nothing_outside_its_run(folder: Path, last: Path, name: str) -> None:
    (folder / "victim").mkdir()
    (folder / "victim" / "precious").write_text("keep")
    path, low = name.format(folder=folder), torch.tensor(-1.0)
    record = {"best_k_models": {path: low}, "kth_best_model_path": path, "kth_value": low}
    record |= {"best_model_path": path, "best_model_score": low, "last_model_path": path}
    assert fit_on(with_record(last, folder / "bad.ckpt", dirpath=str(folder), **record)) == 0
    assert (folder / "victim" / "precious").read_text() == "keep"
    assert (folder / "bad.ckpt").exists()
    version = folder / "runs/tiny/version_0"
    assert {"config.yaml", "metrics.csv", "checkpoints"} <= {p.name for p in version.iterdir()}
    assert {p.name for p in (version / "checkpoints").iterdir()} == {
        "best-epoch=2.ckpt",
        "last.ckpt",
    }


@pytest.mark.parametrize(
    "record",
    [
        {"best_k_models": ["a"]},
        {"best_k_models": {1: torch.tensor(1.0)}},
        {"best_k_models": {"a": torch.zeros(2)}},
        {"best_k_models": {"a": 1.0}},
        {"best_k_models": {"a": torch.tensor(1j)}},
        {"best_k_models": {"a": torch.tensor([1.0]).to_sparse()}},
        {"best_model_path": 7},
        {"best_model_path": "a\0b"},
        {"kth_best_model_path": None},
    ],
)
def test_a_damaged_record_is_refused(
    folder: Path, last: Path, record: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit_on(with_record(last, folder / "bad.ckpt", **record)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert line.startswith("error: ")
    assert "checkpoint" in line


@pytest.mark.parametrize("name", ["a/b", "../x", "a/", "/abs", "x" * 300, "-rf", "a\nb", "$/x"])
def test_names_with_several_folders_are_refused(
    folder: Path, images: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    for arguments in (
        ["fit", "-c", "tiny.yaml", f"--name={name}"],
        ["predict", "-c", "tiny.yaml", f"--name={name}", "--data.predict_dir", str(images)],
        ["prepare", "from-folder", str(images / "val"), f"--name={name}"],
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: --name: expected the name of a single folder, such as")
    assert sorted(folder.rglob("*")) == before


def test_a_name_with_special_characters_is_one_folder(folder: Path, images: Path) -> None:
    name = "$HOME {x} [1] ~ 'é'"
    arguments = ["--data.predict_dir", str(images / "val" / "red")]
    assert main(["predict", "-c", "tiny.yaml", "--name", name, *arguments]) == 0
    found = {str(path.parent) for path in Path("runs").rglob("*") if path.is_file()}
    assert found == {f"runs/{name}/predict_0", f"runs/{name}/predict_0/images"}


def test_a_recipe_with_any_name_gives_one_folder(
    folder: Path, write_recipe: Callable[..., Path]
) -> None:
    path = write_recipe(folder, "-" + "long:" * 45)
    assert main(["fit", f"--config={path}", "--trainer.max_epochs=1"]) == 0
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("long_long_")
    assert len(run.name) == 150


def test_last_ignores_file_times(folder: Path, last: Path) -> None:
    from src.cli.checkpoints import resolve_checkpoint

    for number, time in ((2, 3e8), (10, 2e8), (9, 1e9)):
        for name in ("last.ckpt", "best-epoch=9.ckpt", "best-epoch=10.ckpt"):
            path = folder / f"runs/tiny/version_{number}/checkpoints/{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(last.read_bytes())
            os.utime(path, (time, time - path.name.count("10")))
    found = resolve_checkpoint("last", folder / "runs/tiny")
    assert found == folder / "runs/tiny/version_10/checkpoints/last.ckpt"
    for path in folder.rglob("best-*"):
        with_record(path, path, best_model_path="")
    found = resolve_checkpoint("best", folder / "runs/tiny")
    assert found == folder / "runs/tiny/version_10/checkpoints/best-epoch=10.ckpt"


ODD_NAMES = (
    *("a.jpg", "a.png", "a.jpg.png", "A.jpg", "two words.png", "line\nbreak.png", "=1+1.png"),
    *("猫.jpg", os.fsdecode(b"caf\xe9.png"), "-rf.png", "a" * 251 + ".jpg", "a" * 251 + ".png"),
    *("x.jpg", "x.png/b.jpg"),
)


def test_every_image_has_its_own_output(folder: Path, last: Path) -> None:
    for number, name in enumerate(ODD_NAMES):
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 30), (number, 9, 9)).save(
            path, format="PNG" if name.endswith("png") else "JPEG"
        )
    arguments = ["--ckpt_path", str(last), "--data.predict_dir", "in", "--data.batch_size", "3"]
    assert main(["predict", "-c", "tiny.yaml", *arguments]) == 0
    results = Path("runs/tiny/predict_0")
    drawn = [path for path in (results / "images").rglob("*") if path.is_file()]
    assert len(drawn) == len({str(path).casefold() for path in drawn}) == len(ODD_NAMES)
    table = results / "predictions.csv"
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert {row["path"] for row in csv.DictReader(file)} == {f"in/{n}" for n in ODD_NAMES}


def test_class_names_are_escaped_for_spreadsheets(folder: Path, last: Path, images: Path) -> None:
    names = ["=HYPERLINK(1)", "@b", "-c"]
    arguments = ["--ckpt_path", str(last), "--data.predict_dir", str(images / "val" / "red")]
    assert main(["predict", "-c", "tiny.yaml", *arguments, f"--data.class_names={names}"]) == 0
    with Path("runs/tiny/predict_0/predictions.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert {row["class_1"], row["class_2"], row["class_3"]} == {f"'{name}" for name in names}
    assert float(row["prob_1"]) > 0


@pytest.mark.timeout(60)
def test_pipes_and_sockets_are_skipped(folder: Path, last: Path) -> None:
    Path("in").mkdir()
    os.mkfifo("in/pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("in/socket.jpg")
    Image.new("RGB", (30, 30)).save("in/image.png")
    arguments = ["--ckpt_path", str(last), "--data.predict_dir", "in"]
    with pytest.warns(UserWarning, match=r"in/pipe.png is not a regular file"):
        assert main(["predict", "-c", "tiny.yaml", *arguments]) == 0
    lines = Path("runs/tiny/predict_0/predictions.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["path", "in/image.png"]
    assert main(["predict", "-c", "tiny.yaml", "--data.predict_dir", "in/pipe.png"]) == 2
