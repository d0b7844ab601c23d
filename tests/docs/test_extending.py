"""The diffs of docs/extending.md apply to the tree, touch one place each, and do what it says."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.toy.coco import write_toy_coco
from src.data.toy.layout import ToySettings
from src.serialization import read_checkpoint

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = {
    text.splitlines()[0]: text for text in re.split("^## ", PAGE, flags=re.M) if "```diff" in text
}

SMALL = [
    *("--name", "tiny", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"),
    *("--data.num_workers", "0"),
]


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.M | re.S)


def changed(diff: str) -> dict[str, list[str]]:
    """Lines that a diff adds or removes, by file."""
    files = {}
    for part in re.split(r"^diff --git ", diff, flags=re.M)[1:]:
        name = re.search(r"^\+\+\+ b/(.*)$", part, re.M)[1]
        files[name] = re.findall(r"^[+-](?!\+\+ |-- ).*$", part, re.M)
    return files


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Copy of the project to which the diff of a section has been applied."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    folder = tmp_path / "project"
    for name in ("src", "configs"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "csrc")
        )
    (diff,) = blocks(request.param, "diff")
    subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=folder, check=True)
    return folder


def run(project: Path, *args: str) -> None:
    done = subprocess.run(
        [sys.executable, *args], cwd=project, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


def command(section: str) -> list[str]:
    """Arguments of the one command of a section."""
    (text,) = blocks(section, "bash")
    program, *args = shlex.split(text.replace("\\\n", " "))
    assert program == "python"
    return args


@pytest.mark.parametrize("section", SECTIONS)
def test_a_change_is_new_files_and_one_line(section: str) -> None:
    (diff,) = blocks(section, "diff")
    files = changed(diff)
    new = {name for name in files if not (ROOT / name).exists()}
    assert len({Path(name).parent for name in new}) == 1
    (registry,) = files.keys() - new
    assert [line[0] for line in files[registry]] == ["+"]


@pytest.mark.parametrize("project", SECTIONS, indirect=True)
def test_a_change_has_the_style_of_the_project(project: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", project)
    run(project, "-m", "ruff", "check", "src/data/datamodules", "src/models")
    run(project, "-m", "ruff", "format", "--check", "src/data/datamodules", "src/models")


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_a_few_numbered_steps(section: str) -> None:
    numbers = [int(n) for n in re.findall(r"^(\d)\. ", SECTIONS[section], re.M)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert 3 <= len(numbers) <= 6


@pytest.mark.slow
@pytest.mark.parametrize("project", ["Add a dataset"], indirect=True)
def test_the_dataset_trains_and_predicts(project: Path) -> None:
    root = project / "data" / "oxford-iiit-pet"
    breeds = {"Abyssinian": 1, "yorkshire_terrier": 2}
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for split, count in (("trainval", 4), ("test", 2)):
        lines = []
        for breed, number in breeds.items():
            for index in range(count):
                name = f"{breed}_{split}{index}"
                pixels = np.full((40, 36, 3), 60 * number + index, np.uint8)
                Image.fromarray(pixels).save(root / "images" / f"{name}.jpg")
                lines.append(f"{name} {number} 1 1")
        (root / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    fit = [*command("Add a dataset"), *SMALL, "--data.image_size", "32", "--data.batch_size", "4"]
    run(project, *fit)
    predict = ["predict" if arg == "fit" else arg for arg in fit]
    run(project, *predict, "--ckpt_path", "last", "--data.predict_dir", str(root / "images"))
    table = (project / "runs" / "tiny" / "predict_0" / "predictions.csv").read_text()
    assert all(f"{breed}," in table for breed in breeds)


@pytest.mark.slow
@pytest.mark.parametrize("project", ["Add a detector"], indirect=True)
def test_the_detector_trains(project: Path) -> None:
    write_toy_coco(project / "data/toy/coco", ToySettings(train=1, val=1, predict=1, size=64))
    network = "--model.network.backbone.depths=[1,1,1,1]", "--model.network.channels=32"
    sizes = "--data.train_scales=[[64,48]]", "--data.eval_scale=[64,48]"
    run(project, *command("Add a detector"), *SMALL, *network, *sizes)
    (folder,) = (project / "runs" / "tiny").iterdir()
    names = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss_bbox_ctrness", "val/bbox_AP"} <= set(names)
    assert "val/segm_AP" not in names


@pytest.mark.slow
@pytest.mark.parametrize("project", ["Replace the operator"], indirect=True)
def test_the_operator_is_replaced(project: Path, images: Path) -> None:
    data = "--data.root", str(images), "--data.image_size", "32", "--data.batch_size", "8"
    run(project, *command("Replace the operator"), *SMALL, *data)
    (folder,) = (project / "runs" / "tiny").iterdir()
    state = read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
    assert state["network.levels.0.blocks.0.dcn.conv.weight"].shape == (32, 16, 3, 3)
