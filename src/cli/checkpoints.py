"""Finding the checkpoint that a run continues from, and checking it before anything is started."""

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
    """Turn ``--ckpt_path`` into a file or folder that is a checkpoint of this project.

    Args:
        given: A path, or ``last`` or ``best`` for the newest such file of any run in ``runs``.
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
                f"The checkpoint {given} does not exist; give a .ckpt file, or 'last' or 'best' to"
                f" take the newest of {runs}."
            )
    if is_sharded_checkpoint(path):
        Folder(path)
        read_rest(path)
    elif path.is_file():
        read_checkpoint(path)  # of the weights only what describes them
    else:
        raise UserError(
            f"The folder {path} is no complete checkpoint: what belongs to all processes, .metadata"
            f" and {REST}, is not in it. Take an older checkpoint, or copy it again."
        )
    return path


def check_reads_safely(trainer: Trainer) -> None:
    """Refuse to give a checkpoint to a strategy that would unpickle it with a reader of its own.

    Raises:
        UserError: Names the strategies that read checkpoints as this project does.
    """
    strategy = trainer.strategy
    own_reader = type(strategy).load_checkpoint is not Strategy.load_checkpoint
    if own_reader and not isinstance(strategy, (FSDP1Strategy, FSDP2Strategy)):
        raise UserError(
            f"{type(strategy).__name__} reads checkpoints in a way that can run code in them; use"
            " --trainer.strategy fsdp1, fsdp2 or ddp to continue from a checkpoint."
        )
    reader = strategy.checkpoint_io
    # Lightning's own plugins write in other ways and must read in this one.
    if type(reader).__module__.startswith("lightning."):
        setattr(reader, "load_checkpoint", AtomicCheckpointIO().load_checkpoint)  # noqa: B010


def failed_while_restoring(error: BaseException) -> bool:
    """Whether an error was raised while Lightning handed out the content of a checkpoint."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(
        Path(frame.filename).name == "checkpoint_connector.py"
        and frame.name.lstrip("_").startswith(("restore", "resume"))
        for frame in frames
    )


def _newest(keyword: str, runs: Path) -> Path:
    pattern = "last" if keyword == "last" else "best*"  # beside last.ckpt lies last_whole.ckpt
    found = list(runs.glob(f"version_*/checkpoints/{pattern}.ckpt"))
    # A process that was killed between two renamings has left its checkpoint under this name.
    spare = runs.glob(f"version_*/checkpoints/{pattern}.ckpt.old")
    found += [path for path in spare if path.with_suffix("") not in found]
    if not found:
        raise UserError(
            f"There is no {keyword!r} checkpoint in {runs}/version_*/checkpoints to continue from;"
            " leave --ckpt_path out to start anew, or give the file, or the run's --name."
        )
    newest = max(found, key=_age)
    return newest if keyword == "last" else _best_known_to(newest)


def _age(path: Path) -> tuple[int, list[int], int]:
    """Sort key, larger for newer: run, epoch and step; the clock only where names do not tell."""
    run = re.fullmatch(r"version_(\d+)", path.parts[-3])
    progress = [int(number) for number in re.findall(r"=(\d+)", path.name)]
    return int(run[1]) if run else -1, progress, path.stat().st_mtime_ns


def _best_known_to(checkpoint: Path) -> Path:
    """The best checkpoint of the run that wrote this one, which is only the newest of its best.

    Each of the best checkpoints was the newest when it was written, and knows the best until then.
    """
    content = read_rest(checkpoint) if checkpoint.is_dir() else read_checkpoint(checkpoint)
    states = content.get("callbacks", {}).values()
    named = [state.get("best_model_path") for state in states if isinstance(state, dict)]
    known = [Path(path) for path in named if isinstance(path, str) and Path(path).name]
    moved = [checkpoint.with_name(path.name) for path in known]
    return next((path for path in (*known, *moved) if path.exists()), checkpoint)
