import subprocess
import sys
from pathlib import Path

import pytest

from src.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_without_a_command_it_explains_itself(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    output = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "prepare", "verify", "profile", "env"):
        assert f"\n  {command} " in output
    assert len(output.splitlines()) < 16
    assert all(len(line) <= 100 for line in output.splitlines())


def test_env_tells_versions_and_operators(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    output = capsys.readouterr().out
    for name in ("torch", "lightning", "timm", "dcnv3 on cpu", "INTERNIMAGE_OPS", "source"):
        assert f"{name} " in output


def test_tools_do_not_wait_for_lightning() -> None:
    script = (
        "import sys; from src.cli import main; code = main(['env']);"
        "sys.exit(code or 10 * ('lightning' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)
    assert done.returncode == 0


@pytest.mark.parametrize("command", ["prepare", "verify", "profile"])
def test_tools_are_dispatched(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([command, "--help"])
    except SystemExit as stop:  # argparse
        code = stop.code
    assert code == 0
    assert "usage" in capsys.readouterr().out


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help"]) == 0
    output = capsys.readouterr().out
    for setting in ("--name", "--checkpoint.save_top_k", "--trainer.max_epochs", "--ckpt_path"):
        assert setting in output
