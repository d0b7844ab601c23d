"""Consolidation of a checkpoint folder written with FSDP1."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.distributed import consolidate
from src.distributed.checkpoints import read_shapes
from src.errors import UserError
from src.serialization.folders import Folder
from tests.distributed.conftest import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fsdp1") / "last.ckpt"
    command = [sys.executable, "-m", "tests.distributed.fsdp1_folder", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.slow
def test_weights_and_optimizer_state_are_consolidated(folder: Path) -> None:
    expected = torch.load(folder.with_suffix(".expected"), weights_only=True)
    content = consolidate(folder)
    assert content["epoch"] == 3
    assert content["state_dict"].keys() == expected["model"].keys()
    for name, value in expected["model"].items():
        assert torch.equal(content["state_dict"][name], value), name
    (state,) = content["optimizer_states"]
    names = [name for group in expected["optimizer_0"]["param_groups"] for name in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    assert numbers == list(range(len(names)))
    for number, name in enumerate(names):
        for key, value in expected["optimizer_0"]["state"][name].items():
            assert torch.equal(state["state"][number][key], value), (name, key)


@pytest.mark.slow
def test_shapes_are_read_from_the_metadata(folder: Path) -> None:
    shapes = read_shapes(Folder(folder))["state_dict"]
    assert shapes["network.head.bias"] == (3,)
    assert set(shapes) == set(consolidate(folder, weights_only=True)["state_dict"])


def test_a_folder_that_is_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a sharded checkpoint"):
        consolidate(tmp_path)
    with pytest.raises(UserError, match=r"The checkpoint \S+/last\.ckpt does not exist\.$"):
        consolidate(tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").mkdir()
    with pytest.raises(
        UserError, match=r"lst\.ckpt does not exist\. Did you mean \S+/last\.ckpt\?"
    ):
        consolidate(tmp_path / "lst.ckpt")
