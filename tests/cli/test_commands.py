import re
import subprocess
import sys
from pathlib import Path

import pytest

from src.cli import main
from src.cli.commands.completion import script
from src.cli.short_help import short_help

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_overview_without_a_command(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    output = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "prepare", "verify", "profile", "env"):
        assert f"\n  {command} " in output
    assert len(output.splitlines()) < 18
    assert all(len(line) <= 100 for line in output.splitlines())


def test_env_prints_versions_and_operators(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    output = capsys.readouterr().out
    for name in ("torch", "lightning", "timm", "dcnv3 on cpu", "INTERNIMAGE_OPS", "source"):
        assert f"{name} " in output


def test_tools_do_not_import_lightning() -> None:
    script = (
        "import sys; from src.cli import main; code = main(['env']);"
        "sys.exit(code or 10 * ('lightning' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)
    assert done.returncode == 0


def test_a_reader_that_stops_early_is_no_error() -> None:
    command = f"{sys.executable} -m src env | true"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""


def test_commands_that_import_lightning_say_so_at_once() -> None:
    command = [sys.executable, "-m", "src", "predict", "-c", "configs/toy/classification.yaml"]
    done = subprocess.run(
        [*command, "--data.num_workers", "no"], cwd=ROOT, capture_output=True, text=True
    )
    first, error = done.stderr.splitlines()
    assert first == "predict: loading PyTorch and Lightning ..."
    assert error.startswith("error: data.num_workers must be")


@pytest.mark.parametrize("command", ["prepare", "verify", "profile"])
def test_tools_are_dispatched(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([command, "--help"])
    except SystemExit as stop:  # argparse
        code = stop.code
    assert code == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help_is_short(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    output = capsys.readouterr().out
    assert len(output.splitlines()) < 26
    assert all(len(line) <= 100 for line in output.splitlines())
    assert len(re.findall(r"--(?:data|trainer|checkpoint|detections)\.\w+", output)) >= 3


def test_bash_completes_commands_recipes_and_settings() -> None:
    def complete(*words: str) -> list[str]:
        lines = [
            script("bash"),
            f"COMP_WORDS=({' '.join(words)})",
            f"COMP_CWORD={len(words) - 1}",
            "_internimage; printf '%s\\n' \"${COMPREPLY[@]}\"",
        ]
        done = subprocess.run(
            ["bash", "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert complete("internimage", "va") == ["validate"]
    assert "--trainer.max_epochs" in complete("internimage", "fit", "--trainer.")
    toys = complete("internimage", "fit", "--config", "configs/toy/cl")
    assert toys == ["configs/toy/classification.yaml"]
    assert complete("internimage", "fit", "--ckpt_path", "bes") == ["best"]


def test_help_of_prepare_is_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "from-folder", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "prepare from-folder: images in one folder per class. Either FOLDER/<class>/*" in text
    assert "name of the source folder, with _ in place of spaces" in text
    assert "`" not in text


def test_full_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help_all"]) == 0
    output = capsys.readouterr().out
    named = re.findall(r"--(?:trainer|checkpoint)\.\w+", short_help("fit"))
    for setting in ("--name", "--ckpt_path", *named):
        assert setting in output
