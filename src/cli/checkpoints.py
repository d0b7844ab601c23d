"""Find the checkpoint given by ``--ckpt_path`` and validate it before the run starts."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy

from src.callbacks import AtomicCheckpointIO
from src.distributed.checkpoints import is_sharded_checkpoint
from src.errors import UserError
from src.serialization import REST, Folder, read_checkpoint, read_rest
from src.strategies import FSDP1Strategy, FSDP2Strategy

KEYWORDS = ("last", "best")


def resolve_checkpoint(given: str, runs: Path) -> Path:
    """Path of the checkpoint file or folder that ``--ckpt_path`` refers to.

    Args:
        given: A path, or ``last`` or ``best`` for the newest such checkpoint in ``runs``.
        runs: Folder with the ``version_*`` folders of one run name.

    Raises:
        UserError: If there is none, or it cannot be read.
    """
    if given in KEYWORDS:
        path = _newest(given, runs)
    else:
        path = Path(given)
        if not path.exists():
            raise UserError(
                f"The checkpoint {given} does not exist. Give a .ckpt file, or 'last' or 'best' for"
                f" the newest one in {runs}."
            )
    if is_sharded_checkpoint(path):
        Folder(path)
        read_rest(path)
    elif path.is_file():
        read_checkpoint(path)  # reads only the metadata of the weights
    else:
        raise UserError(
            f"The folder {path} is not a complete checkpoint: .metadata or {REST} is missing."
            " Use an older checkpoint, or copy the folder again."
        )
    return path


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


def _newest(keyword: str, runs: Path) -> Path:
    pattern = "last" if keyword == "last" else "best*"  # not last_whole.ckpt (`consolidate`)
    found = list(runs.glob(f"version_*/checkpoints/{pattern}.ckpt"))
    # A process killed between two renames leaves its checkpoint under this name.
    spare = runs.glob(f"version_*/checkpoints/{pattern}.ckpt.old")
    found += [path for path in spare if path.with_suffix("") not in found]
    if not found:
        raise UserError(
            f"There is no {keyword!r} checkpoint in {runs}/version_*/checkpoints. Give a file, set"
            " --name to the name of the run, or omit --ckpt_path to start from the beginning."
        )
    newest = max(found, key=_age)
    return newest if keyword == "last" else _best_of_run(newest)


def _age(path: Path) -> tuple[int, list[int], int]:
    """Sort key: version number, epoch and step, and the file time only if these are equal."""
    run = re.fullmatch(r"version_(\d+)", path.parts[-3])
    progress = [int(number) for number in re.findall(r"=(\d+)", path.name)]
    return int(run[1]) if run else -1, progress, path.stat().st_mtime_ns


def _best_of_run(checkpoint: Path) -> Path:
    """The best checkpoint of the run that wrote this one.

    With ``save_top_k`` above 1, the newest ``best*`` checkpoint is not always the best one, but it
    records the path of the best one.
    """
    content = read_rest(checkpoint) if checkpoint.is_dir() else read_checkpoint(checkpoint)
    states = content.get("callbacks", {}).values()
    named = [state.get("best_model_path") for state in states if isinstance(state, dict)]
    known = [Path(path) for path in named if isinstance(path, str) and Path(path).name]
    moved = [checkpoint.with_name(path.name) for path in known]
    return next((path for path in (*known, *moved) if path.exists()), checkpoint)
