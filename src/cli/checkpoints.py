"""Find the checkpoint given by ``--ckpt_path`` or ``--name`` and validate it before the run."""

from __future__ import annotations

import traceback
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy

from src.callbacks import AtomicCheckpointIO
from src.cli.run_settings import refuse_misspelt_keyword, tell_if_not_best
from src.distributed.checkpoints import is_sharded_checkpoint
from src.errors import UserError
from src.file_names import quoted
from src.runs import (
    KEYWORDS,
    checkpoints,
    find_checkpoint,
    newest_checkpoint,
)
from src.serialization import Folder, read_checkpoint, read_rest
from src.strategies import FSDP1Strategy, FSDP2Strategy


def resolve_checkpoint(given: str, runs: Path) -> Path:
    """Path of the checkpoint file or folder that ``--ckpt_path`` refers to.

    Args:
        given: A checkpoint or the folder of a run, or ``last`` or ``best`` for the newest such
            checkpoint in ``runs``.
        runs: Folder with the ``version_*`` folders of one run name.

    Raises:
        UserError: If there is none, or it cannot be read.
    """
    if given in KEYWORDS:
        path = newest_checkpoint(given, runs)
    else:
        if not Path(given).exists():
            refuse_misspelt_keyword(given)
        path = find_checkpoint(given, runs=runs)
        tell_if_not_best(given, path)
    if is_sharded_checkpoint(path):
        Folder(path)
        read_rest(path)
    else:
        read_checkpoint(path)  # reads only the metadata of the weights
    return path


def refuse_untrained(command: str | None, runs: Path) -> None:
    """Refuse an untrained network if there is a trained one of the same name.

    Its results would be beside those of the trained one, as if they were from it.

    Args:
        command: The command; only evaluation and prediction are refused.
        runs: Folder of the runs of one name.

    Raises:
        UserError: If a run there has a checkpoint.
    """
    for keyword in ("best", "last") if command in ("validate", "test", "predict") else ():
        if checkpoints(keyword, runs):
            raise UserError(
                f"{command} with --config alone uses an untrained network, but {runs} has a trained"
                f" one: add --ckpt_path {keyword}, or give --name {quoted(runs.name)} without"
                " --config."
            )


def check_reads_safely(trainer: Trainer) -> None:
    """Refuse strategies that would unpickle a checkpoint with their own reader.

    Raises:
        UserError: If the strategy does not use the checkpoint reader of this project.
    """
    strategy = trainer.strategy
    own_reader = type(strategy).load_checkpoint is not Strategy.load_checkpoint
    if own_reader and not isinstance(strategy, (FSDP1Strategy, FSDP2Strategy)):
        raise UserError(
            f"{type(strategy).__name__} can run code from a checkpoint when it reads it. Use"
            " --trainer.strategy fsdp1, fsdp2 or ddp to resume from a checkpoint."
        )
    reader = strategy.checkpoint_io
    # Lightning's own plugins may write in another way but must use our reader.
    if type(reader).__module__.startswith("lightning."):
        setattr(reader, "load_checkpoint", AtomicCheckpointIO().load_checkpoint)  # noqa: B010


def failed_while_restoring(error: BaseException) -> bool:
    """Whether an error was raised while Lightning restored states from a checkpoint."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(
        Path(frame.filename).name == "checkpoint_connector.py"
        and frame.name.lstrip("_").startswith(("restore", "resume"))
        for frame in frames
    )
