"""Settings that are suggested for the options of other libraries exist."""

import re

import pytest
from lightning import Trainer

from src.callbacks import Checkpoint, DetectionWriter
from src.cli.other_names import _ANSWERS, OTHER_COMMANDS, answer_for
from src.cli.parser_errors import _task_and_data_settings, setting_names
from src.models import InternImage
from src.optim.schedules import WarmupCosine

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
