"""Finding the checkpoint that a run continues from, and checking it before anything is started."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch

from src.distributed.checkpoints import REST, is_sharded_checkpoint, read_rest
from src.errors import UserError

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
    if path.is_file():
        check_readable(path)
    elif not is_sharded_checkpoint(path):
        raise UserError(
            f"The folder {path} is no complete checkpoint: what belongs to all processes, .metadata"
            f" and {REST}, is not in it. Take an older checkpoint, or copy it again."
        )
    return path


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
    newest = max(found, key=lambda path: (path.stat().st_mtime_ns, path.parts))
    return newest if keyword == "last" else _best_known_to(newest)


def _best_known_to(checkpoint: Path) -> Path:
    """The best checkpoint of the run that wrote this one, which is only the newest of its best.

    Each of the best checkpoints was the newest when it was written, and knows the best until then.
    """
    if checkpoint.is_dir():
        content = read_rest(checkpoint)
    else:
        check_readable(checkpoint)
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    states = content.get("callbacks", {}).values()
    known = [Path(state["best_model_path"]) for state in states if state.get("best_model_path")]
    moved = [checkpoint.with_name(path.name) for path in known]
    return next((path for path in (*known, *moved) if path.exists()), checkpoint)


def check_readable(path: Path) -> None:
    """Refuse a file that is no checkpoint of a training run.

    Raises:
        UserError: If it is truncated, damaged or something else.
    """
    # The table of contents stands at the end of the file, so a truncated one has none.
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"The checkpoint {path} cannot be read: it is truncated or not a PyTorch file. Take an"
            " older checkpoint, or copy it again."
        )
    try:
        # Mapping the file reads its structure only, whatever the size of the weights.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]
        raise UserError(f"The checkpoint {path} cannot be read: {text}.") from error
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        raise UserError(
            f"{path} is not a checkpoint of a training run; to start from published weights use"
            f" --model.init_args.weights {path} instead of --ckpt_path."
        )
