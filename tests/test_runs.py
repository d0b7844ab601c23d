"""The checkpoint and the configuration of a run, found by path or name."""

from pathlib import Path

import pytest

from src.errors import UserError
from src.runs import find_checkpoint, trained_run


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


def test_the_current_folder_is_a_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here / "runs/tiny/version_0")
    assert find_checkpoint(".").name.startswith("best-epoch=")
    assert find_checkpoint("../version_0/").name.startswith("best-epoch=")


def test_a_checkpoint_is_found_with_its_config(here: Path) -> None:
    last = here / "runs/tiny/version_0/checkpoints/last.ckpt"
    run = trained_run(last)
    assert (run.checkpoint, run.config) == (last, Path("runs/tiny/version_0/config.yaml"))


def test_what_is_missing_is_named(here: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run runs/tyni\. Runs with .* are tiny"):
        find_checkpoint("tyni")
    with pytest.raises(UserError, match="is not the folder of a run"):
        find_checkpoint(tmp_path)
    (tmp_path / "alone.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"no config\.yaml of the run .*with --config FILE"):
        trained_run(tmp_path / "alone.ckpt")
