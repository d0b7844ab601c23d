"""Commands printed in README and docs are real: each one parses, and the tour on toy data runs."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from src.cli import main
from src.cli.commands import benchmark, prepare
from src.cli.export_options import export_parser
from src.data.toy.imagenet import write_toy_imagenet
from src.data.toy.layout import ToySettings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PARSERS = {
    "prepare": prepare._parser,
    "export": export_parser,
    "benchmark": benchmark._parser,
}
PLACEHOLDERS = ("<", "runs/", "...", "data/own/")
SHELLS = ("", "bash", "sh", "console")
TRAINER_COMMANDS = ("fit", "validate", "test", "predict")


def commands(page: Path) -> list[list[str]]:
    """Arguments of every `python -m src ...` or torchrun line in the code blocks of a page."""
    # Blocks of other languages are matched, too: their ends look like the start of a block.
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S)
    shown = [text for language, text in blocks if language in SHELLS]
    text = "\n".join(shown).replace("\\\n", " ")
    for name, value in re.findall(r"^(\w+)=(\S+)$", text, re.M):  # shell variables
        text = text.replace(f"${name}", value)
    lines = text.splitlines()
    found = [line.split(" -m src", 1)[1] for line in lines if " -m src" in line]
    return [shlex.split(rest, comments=True) for rest in found]


def python_blocks(page: Path) -> list[str]:
    """Python code blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)


ALL = [
    pytest.param(args, id=f"{page.name}: {' '.join(args)[:80]}")
    for page in PAGES
    for args in commands(page)
    if args and page.name != "extending.md"  # needs its diffs: test_extending.py
]


def test_pages_have_commands() -> None:
    assert len(ALL) > 20


@pytest.mark.parametrize("args", [p for p in ALL if p.values[0][0] in TRAINER_COMMANDS])
def test_trainer_command_parses(
    args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    if any(placeholder in arg for arg in args for placeholder in PLACEHOLDERS):
        pytest.skip("names a file that a run makes")
    if "--config" not in args:  # the recipe of a run, which does not exist here
        args = [*args, "--config", "configs/toy/classification.yaml"]
    assert main([*args, "--print_config"]) == 0
    assert "class_path" in capsys.readouterr().out


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_first_examples_of_the_operator_and_the_backbone_run() -> None:
    page = ROOT / "docs" / "ops.md"
    operator: dict[str, Any] = {}
    exec(python_blocks(page)[0], operator)
    assert operator["y"].shape == operator["x"].shape
    backbone: dict[str, Any] = {}
    exec(next(block for block in python_blocks(ROOT / "README.md") if "timm" in block), backbone)
    assert [tuple(feature.shape[2:]) for feature in backbone["features"]] == [
        (56, 56),
        (28, 28),
        (14, 14),
        (7, 7),
    ]


def test_metrics_are_read_by_epoch(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(trained / "runs/tiny", tmp_path / "runs/first")
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(ROOT / "docs" / "configuration.md")
    names: dict[str, Any] = {}
    exec(next(block for block in blocks if "metrics.csv" in block), names)
    assert set(names["epochs"]) == {"0", "1"}  # of two epochs
    assert {"train/loss", "val/top1", "epoch", "step"} <= names["epochs"]["1"].keys()
    assert float(capsys.readouterr().out) == names["epochs"]["0"]["val/top1"]


@pytest.mark.parametrize("args", [p for p in ALL if p.values[0][0] in PARSERS])
def test_tool_command_parses(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parser = PARSERS[args[0]]()
    if args[0] == "prepare":
        assert parser.parse_args(args[1:]).run
        return
    _, recipe = parser.parse_known_args(args[1:])
    if "--config" in recipe and not any("data/own/" in arg for arg in recipe):
        assert main(["fit", *recipe, "--print_config"]) == 0


@pytest.mark.slow
def test_quickstart_runs_on_own_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_toy_imagenet(tmp_path / "toy", ToySettings(train=10, val=1, predict=1, size=64))
    for shape, name in (("star", "golden star"), ("heart", "heart"), ("ring", "ring")):
        shutil.copytree(tmp_path / "toy" / "train" / shape, tmp_path / "photos" / name)
    pages = commands(ROOT / "docs" / "quickstart.md")
    tour = [args for args in pages if "photos" in " ".join(args) and "FOLDER" not in args]
    assert [args[0] for args in tour] == ["prepare", "fit", "predict", "export", "fit"]
    shorter = {"fit": ["--trainer.max_epochs", "2"], "prepare": []}
    for args in tour:
        assert main([*args, *shorter.get(args[0], [])]) == 0, args
    assert "Check:   passed" in capsys.readouterr().out
    assert list((tmp_path / "runs" / "photos").rglob("images/**/*.png"))
    assert (tmp_path / "exported" / "photos" / "model.onnx").is_file()


@pytest.mark.slow
def test_quickstart_runs_on_toy_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    pages = commands(ROOT / "docs" / "quickstart.md")
    tour = [args for args in pages if {"toy", "first"} & set(re.split(r"\W", " ".join(args)))]
    trained = ["prepare", "fit", "fit", "validate", "predict", "fit", "fit"]
    assert [args[0] for args in tour] == trained
    for args in tour:
        smaller = ["--train", "16", "--val", "4"] if args[0] == "prepare" else []
        assert main([*args, *smaller]) == 0, args
    images = list((tmp_path / "runs" / "first").rglob("*.png"))
    assert images
