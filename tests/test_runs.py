"""The checkpoint and the configuration of a run, found by path or name."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from src.errors import UserError
from src.runs import find_checkpoint, instead_of_best, read_settings, trained_run
from src.serialization import read_checkpoint


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with the run ``runs/tiny/version_0``."""
    monkeypatch.chdir(trained)
    return trained


@pytest.mark.parametrize("source", ["tiny", "runs/tiny", "runs/tiny/version_0"])
def test_a_run_is_its_best_checkpoint(here: Path, source: str) -> None:
    run = trained_run(source)
    assert run.checkpoint.parent == Path("runs/tiny/version_0/checkpoints")
    assert run.checkpoint.name.startswith("best-epoch=")
    assert run.config == Path("runs/tiny/version_0/config.yaml")
    assert trained_run(source, "last").checkpoint.name == "last.ckpt"


def test_a_run_without_a_best_checkpoint_is_its_last_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "runs/tiny/version_0", "runs/tiny/version_0")
    for best in Path("runs/tiny/version_0/checkpoints").glob("best*"):
        best.unlink()
    last = Path("runs/tiny/version_0/checkpoints/last.ckpt")
    for source in ("tiny", "runs/tiny", "runs/tiny/version_0", last):
        found = find_checkpoint(source)
        assert found == last
        note = instead_of_best(source, found)
        assert (note is None) == (source == last)
    with pytest.raises(UserError, match="There is no 'best' checkpoint"):
        find_checkpoint("tiny", "best")


def test_the_current_folder_is_a_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here / "runs/tiny/version_0")
    assert find_checkpoint(".").name.startswith("best-epoch=")
    assert find_checkpoint("../version_0/").name.startswith("best-epoch=")


def test_a_checkpoint_is_found_with_its_config(here: Path) -> None:
    last = here / "runs/tiny/version_0/checkpoints/last.ckpt"
    run = trained_run(last)
    assert (run.checkpoint, run.config) == (last, Path("runs/tiny/version_0/config.yaml"))


def test_the_closest_checkpoint_is_suggested(here: Path) -> None:
    with pytest.raises(UserError, match=r"lst\.ckpt does not exist\. Did you mean .*/last\.ckpt\?"):
        find_checkpoint("runs/tiny/version_0/checkpoints/lst.ckpt")
    with pytest.raises(UserError, match=r"does not exist\. Give a \.ckpt file or the folder of a"):
        find_checkpoint("runs/tiny/version_0/checkpoints/x.ckpt")


def test_a_misspelt_folder_of_runs_leads_to_the_run(here: Path) -> None:
    with pytest.raises(UserError, match=r"Did you mean runs/tiny/version_0\?"):
        find_checkpoint("run/tiny/version_0")


def test_what_is_missing_is_named(here: Path, tmp_path: Path) -> None:
    folder = re.escape(f"{Path.cwd()}")
    expected = rf"no run runs/tyni in the current folder, {folder}\. The only run with .* is tiny"
    with pytest.raises(UserError, match=expected):
        find_checkpoint("tyni")
    recipe = Path("data/own/shapes/shapes.yaml")
    recipe.parent.mkdir(parents=True)
    recipe.touch()
    with pytest.raises(UserError, match=rf"Train it first: python -m src fit --config {recipe}$"):
        find_checkpoint("shapes")
    with pytest.raises(UserError, match=r"version_9\. The only version .* is version_0\."):
        find_checkpoint("runs/tiny/version_9")
    with pytest.raises(UserError, match="is not the folder of a run"):
        find_checkpoint(tmp_path)
    (here / "runs/new/predict_0").mkdir(parents=True)
    (here / "runs/new/predict_0/config.yaml").write_text("")
    with pytest.raises(UserError, match=r"runs/new has no checkpoint; train .* is tiny"):
        find_checkpoint("new")
    (tmp_path / "alone.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"no config\.yaml of the run .*with --config FILE"):
        trained_run(tmp_path / "alone.ckpt")


def test_another_folder_than_that_of_the_runs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        find_checkpoint("tiny")
    assert str(caught.value) == (
        f"There is no run runs/tiny in the current folder, {Path.cwd()}. Change to the folder in"
        " which it was trained, or give the path of the run (on the command line with"
        " --ckpt_path)."
    )
    with pytest.raises(UserError, match=rf"no run {re.escape(str(tmp_path))}/tiny\. Change to"):
        find_checkpoint(tmp_path / "tiny")


def test_a_checkpoint_outside_its_run_is_named_without_dots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work/here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work/here")
    Path("../moved.ckpt").touch()
    Path("config.yaml").touch()  # the folder before the dots is not one of the checkpoint
    folder = re.escape(str((tmp_path / "work").resolve()))
    expected = rf"of {folder}/moved\.ckpt \(searched in {folder} and .*Copy the config\.yaml"
    with pytest.raises(UserError, match=expected):
        trained_run("../moved.ckpt")
    Path("../config.yaml").touch()
    assert (
        trained_run("../moved.ckpt").config.resolve() == (tmp_path / "work/config.yaml").resolve()
    )


def test_a_checkpoint_cannot_refer_to_the_run_of_another_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "other"):
        shutil.copytree(trained / "runs/tiny/version_0", f"runs/{name}/version_0")
    best = next(Path("runs/mine/version_0/checkpoints").glob("best*.ckpt"))
    elsewhere = tmp_path / "runs/other/version_0/checkpoints/last.ckpt"
    elsewhere.rename(elsewhere.with_name("elsewhere.ckpt"))
    content = read_checkpoint(best)
    for state in content["callbacks"].values():
        if "best_model_path" in state:
            state["best_model_path"] = str(elsewhere.with_name("elsewhere.ckpt"))
    torch.save(content, "changed.ckpt")  # not in place, because its tensors are memory-mapped
    Path("changed.ckpt").replace(best)
    expected = r"elsewhere\.ckpt, which is not in a folder of this run\. To use it, give its path"
    with pytest.raises(UserError, match=expected):
        trained_run("mine")


def test_a_configuration_has_no_endless_references(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    lines = ["a0: &a0 [1, 1]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"config\.yaml has references \(\*name\)"):
        read_settings(path)
