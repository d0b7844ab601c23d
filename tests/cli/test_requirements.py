"""Commands in an environment without the packages of the project, or with a broken one."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NoReturn

import pytest

from src.cli import main
from src.cli.requirements import REQUIRED

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("command", ["env", "fit -c configs/toy/classification.yaml"])
def test_an_environment_without_packages(command: str) -> None:
    bare = [sys.executable, "-S", "-m", "src"]  # without site-packages
    done = subprocess.run([*bare, *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: The packages torch, lightning, torchvision, ... are not")
    assert "run `make install` and then `source .venv/bin/activate`" in line


@pytest.fixture
def env_that_raises(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Make the command ``env`` raise an error."""

    def prepare(error: Exception) -> None:
        def broken(_: object) -> NoReturn:
            raise error

        monkeypatch.setattr("src.cli.commands.env.main", broken)

    return prepare


def test_one_missing_package(
    env_that_raises: Callable[[Exception], None], capsys: pytest.CaptureFixture[str]
) -> None:
    error = RuntimeError("cannot import the command")
    error.__cause__ = ModuleNotFoundError("No module named 'lightning'", name="lightning")
    env_that_raises(error)
    assert main(["env"]) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"error: The package lightning is not installed for {sys.executable}: ")


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'onnx'", name="onnx"),  # an extra
        ModuleNotFoundError("No module named 'torch.gone'", name="torch.gone"),
        ImportError("libcudart.so: cannot open shared object file", name="torch"),
    ],
)
def test_other_errors_of_imports_keep_their_traceback(
    env_that_raises: Callable[[Exception], None],
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    env_that_raises(error)
    assert main(["env"]) == 1
    assert capsys.readouterr().err.count("Traceback") == 1


def test_all_dependencies_are_known() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {
        re.match(r"[\w-]+", entry)[0].replace("-", "_").lower()  # type: ignore[index]
        for entry in project["dependencies"]
    }
    imported = packages_distributions()
    known = {d.replace("-", "_").lower() for name in REQUIRED for d in imported.get(name, ())}
    assert names <= known
