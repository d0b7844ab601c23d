"""Misspelt options: the answer names the option that was meant."""

import argparse
from importlib import import_module
from typing import Any

import pytest
from lightning.pytorch.cli import LightningCLI

from src.cli import TOOLS, TRAINER_COMMANDS, main
from src.cli.app import TrainingCLI
from src.cli.misspellings import OPTIONS, OWN_OPTIONS
from src.cli.tool_parser import ToolParser


def error_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Error of a command that must fail."""
    assert main(command.split()) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        *[
            (f"{command} {given} first", "--name")
            for command in ("validate", "test", "predict", "export", "plan", "benchmark", "demo")
            for given in ("--nmae", "--nam", "--Name", "-name")
        ],
        ("fit --nmae=first", "--name"),
        ("predict --naem first --data.predict_dir photos", "--name"),
        ("fit --conifg recipe.yaml", "--config"),
        ("fit --conf recipe.yaml", "--config"),
        ("validate --ckpt-path runs/first", "--ckpt_path"),
        ("export --ckpt x", "--ckpt_path"),
        ("export --chekc", "--check"),
        ("export --output x", "--out or --outputs"),
        ("predict --modle.weights X", "--model.weights"),
        ("predict --name first --modle.weights X", "--model.weights"),
        ("fit --modle.network.variant internimage_t", "--model.network.variant"),
        ("fit --trainr.max_epochs 3", "--trainer.max_epochs"),
        ("fit --helpp", "--help"),
        ("validate --verbos true", "--verbose"),
        ("benchmark --stpes 3", "--steps"),
        ("benchmark --name first --onebatch", "--one_batch"),
        ("plan --name first --gpu 8", "--gpus or --gpus_per_node"),
        ("plan --name first --nmae x", "--name"),
        ("profile --modle internimage_t", "--model"),
        ("profile -model internimage_t", "--model"),
        ("verify imagenet -root x", "--root"),
        ("consolidate x --offical", "--official"),
        ("prepare from-folder photos --nmae x", "--name"),
        ("prepare from-folder photos -name x", "--name"),
        ("prepare toy --roto x", "--root"),
    ],
)
def test_the_closest_option_is_named(
    capsys: pytest.CaptureFixture[str], command: str, meant: str
) -> None:
    assert f"Did you mean {meant}?" in error_of(command, capsys)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("predict --name", "--name needs a run's name."),
        ("fit --config= --name first", "--config needs a .yaml file."),
        ("export --name=", "--name needs a run's name."),
        ("test --name --ckpt_path last", "--name needs a run's name."),
        ("fit --config", "--config needs a .yaml file."),
        ("benchmark --name first --steps=", "--steps needs a value."),
        ("verify imagenet --root=", "--root needs a value."),
        ("prepare from-folder photos --name", "--name needs a value."),
        ("prepare --nmae x from-folder photos", "prepare needs from-folder first, then --nmae."),
        ("verify --root x", "crowdhuman first, then --root."),
        ("completion", "completion needs bash or zsh."),
        ("completion --shell bash", "Give SHELL without an option: completion SHELL."),
        ("consolidate", "consolidate needs CHECKPOINT, a checkpoint folder"),
        ("profile --model internimage_tt", "Did you mean 'internimage_t'?"),
        (
            "profile --model configs/toy/detection.yaml",
            "profile takes the name of a variant, not a file. Use --model internimage_nano. The"
            " memory of the whole network is computed by plan --config",
        ),
        ("profile --model docs", "not a folder. Use the name of a variant, such as internimage_t."),
        ("fit --name first", "fit needs a recipe. Add --config configs/<recipe>.yaml"),
        ("fit --model.netwrok.variant x", "--model.* settings change those of a recipe or a run"),
    ],
)
def test_what_is_missing_is_said(
    capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    assert message in error_of(command, capsys)


def test_empty_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", ""]) == 2
    assert capsys.readouterr().err == "error: --config needs a .yaml file.\n"


@pytest.mark.parametrize("command", TRAINER_COMMANDS)
def test_the_known_options_are_those_of_the_parser(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    found: set[str] = set()

    def stop(self: Any, *arguments: object) -> None:
        actions = self._subcommand_parsers[command]._actions
        options = [name for action in actions for name in action.option_strings]
        found.update(name.lstrip("-").split(".")[0] for name in options)
        raise SystemExit

    monkeypatch.setattr(LightningCLI, "parse_arguments", stop)
    with pytest.raises(SystemExit):
        TrainingCLI.create([command], run=True)
    assert found | {"help_all"} == {"c", "h", *OPTIONS, *OWN_OPTIONS[command].split()}


@pytest.mark.parametrize("command", [name for name in TOOLS if name in OWN_OPTIONS])
def test_the_known_options_of_tools_are_those_of_their_parsers(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    found: set[str] = set()

    def stop(self: ToolParser, *arguments: object) -> argparse.Namespace:
        found.update(self.option_names())
        raise SystemExit

    monkeypatch.setattr(ToolParser, "parse_known_args", stop)
    with pytest.raises(SystemExit):
        import_module(TOOLS[command]).main(["--config", "recipe.yaml"])
    assert found - {"h", "help", "name", "config", "ckpt_path"} == set(OWN_OPTIONS[command].split())
