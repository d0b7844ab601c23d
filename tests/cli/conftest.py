"""Fixtures of user errors at the command line."""

from collections.abc import Callable
from pathlib import Path

# Import Lightning outside of a test: its log handler keeps the stderr it finds at import.
import lightning.pytorch  # noqa: F401
import pytest

from src.cli import main


@pytest.fixture
def folder(
    tmp_path: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Working directory with the recipe ``tiny.yaml``, which has three steps per epoch."""
    write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail, and return its error message."""

    def run(*arguments: str) -> str:
        assert main(arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1
        assert not any("Traceback" in line for line in lines)
        return errors[0].removeprefix("error: ")

    return run
