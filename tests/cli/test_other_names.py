"""Settings that are suggested for the options of other libraries exist."""

import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from lightning import Trainer

from src.callbacks import Checkpoint, DetectionWriter
from src.cli import build, main
from src.cli.arguments import checked
from src.cli.other_names import _ANSWERS, OTHER_COMMANDS, answer_for
from src.cli.parser_errors import _task_and_data_settings, setting_names
from src.models import InternImage
from src.optim.schedules import WarmupCosine
from src.project import PACKAGE

PARTS = {
    "trainer": Trainer,
    "checkpoint": Checkpoint,
    "detections": DetectionWriter,
    "model.network": InternImage,
    "model.lr_scheduler": WarmupCosine,
}
OPTIMIZER = {"lr", "weight_decay", "momentum"}
ALONE = {"config", "ckpt_path", "name", "seed_everything"}


@pytest.mark.parametrize("answer", sorted(set(_ANSWERS.values())))
def test_suggested_settings_exist(answer: str) -> None:
    known = set(_task_and_data_settings())
    for name in re.findall(r"--([\w.]+)", answer):
        group, _, last = name.rpartition(".")
        if group in PARTS:
            assert last in setting_names(PARTS[group])
        elif group == "model.optimizer":
            assert last in OPTIMIZER
        else:
            assert name in known | ALONE


def test_options_are_recognised_in_any_spelling() -> None:
    assert answer_for("--batch-size") == answer_for("BATCH_SIZE") == "--data.batch_size"
    assert answer_for("--data.batch_size") is None


def test_suggested_commands_exist() -> None:
    from src.cli import TOOLS, TRAINER_COMMANDS

    assert set(OTHER_COMMANDS.values()) <= {*TOOLS, *TRAINER_COMMANDS}


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--version", "-V"):
        assert main([option]) == 0
        assert capsys.readouterr().out == f"internimage-lightning {metadata.version(PACKAGE)}\n"


def test_options_of_the_parser_are_not_taken_for_those_of_other_libraries(
    tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    parser = build(["--config", str(write_recipe(tmp_path))]).parser
    options = [name for name in parser._option_string_actions if "." not in name]
    assert {"--config", "-c", "--name", "--data", "--checkpoint"} <= set(options)
    for name in options:
        assert checked([name, "value"], after=0)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("fti", "Unknown command 'fti'"),
        ("fit --config gone.yaml", "The configuration file gone.yaml does not exist."),
        ("plan -c=gone.yaml --gpus 8", "The configuration file gone.yaml does not exist."),
        ("fit --lr 0.1", "There is no option --lr. Use --model.optimizer.lr, the rate for a batch"),
        ("predict --data.predict_dir", "--data.predict_dir needs a value."),
        ("fit --trainer.max_epoch 3", "'trainer.max_epoch'. Did you mean --trainer.max_epochs?"),
        ("export --name a --trainer.gpus 1", "There is no option --trainer.gpus. Use"),
        ("fit", "fit needs a recipe. Add --config"),
        ("plan --gpus 8", "plan needs a recipe or a run. Give a recipe"),
        ("export --format onnx", "export needs --name RUN, --ckpt_path FILE, or --config FILE"),
        ("env --foo", "env takes no arguments, got '--foo'."),
    ],
)
def test_frequent_mistakes_are_reported_without_importing_pytorch(
    command: str, message: str
) -> None:
    code = "import sys; from src.cli import main; status = main(sys.argv[1:]);"
    code += "sys.exit(99 if 'torch' in sys.modules else status)"
    ended = subprocess.run(
        [sys.executable, "-c", code, *command.split()], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    assert message in ended.stderr
