"""Complete the arguments of a command by the configuration and the checkpoint of a run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from src.cli.arguments import option
from src.cli.suggestions import suggest
from src.errors import UserError, printable
from src.file_names import is_name, quoted
from src.runs import (
    KEYWORDS,
    AbsentCheckpointError,
    TrainedRun,
    from_here,
    init_arguments,
    instead_of_best,
    is_run,
    is_run_or_checkpoint,
    read_settings,
    trained_run,
)
from src.serialization import read_entries
from src.stopping import is_first_rank

_WRITING = ("validate", "test", "predict")  # into a folder beside the run


def with_settings_of_run(args: list[str]) -> list[str]:
    """Arguments, completed by the configuration and the checkpoint of a run if it is named.

    If ``--config`` is missing, ``--ckpt_path FILE`` adds the configuration of the run that wrote
    the file, and ``--name RUN`` that of the newest run of this name, with its best checkpoint
    unless ``--ckpt_path last`` is given. If there is no best one, the last one is used, and a note
    says so. Training needs ``--ckpt_path``, because ``--name`` alone
    is the name of a new run.

    ``validate``, ``test`` and ``predict`` write beside the run of ``--ckpt_path FILE``, wherever
    its folder is, unless ``--name`` or ``--trainer.default_root_dir`` is given.

    For ``predict`` and ``export``, the class names come from the checkpoint if the dataset of the
    run is not on this machine.

    Args:
        args: The command and its arguments.

    Raises:
        UserError: If the run or its checkpoint is missing, or ``--name`` is another run than that
            of ``--ckpt_path``.
    """
    for arg in args[1:2]:
        if not arg.startswith("-") and is_run_or_checkpoint(Path(arg)):
            raise UserError(f"Unexpected argument {arg!r}; use --ckpt_path {quoted(arg)}.")
    if any(arg.split("=")[0] in ("--config", "-c") for arg in args):
        return args
    given, name = option(args, "--ckpt_path"), option(args, "--name")
    root = option(args, "--trainer.default_root_dir")
    runs = Path(root or "runs")
    where: list[str] = []
    if given and given not in KEYWORDS:
        _check_is_no_keyword(given, runs)
        run = trained_run(given, runs=runs)
        if name and args[0] != "fit":
            _check_same_run(given, run, runs / name)
        tell_if_not_best(given, run.checkpoint)
        if not name and root is None and args[0] in _WRITING:
            where = _beside(run.config)
    elif name and (given or args[0] != "fit"):
        _check_is_name(name, runs)
        run = trained_run(runs / name, given, runs)
        if not given:
            tell_if_not_best(runs / name, run.checkpoint)
    elif given:
        raise UserError(
            f"--ckpt_path {given} needs the name of the run, --name RUN, or its recipe, --config"
            " FILE."
        )
    else:
        return args
    names = _class_names(run) if args[0] in ("predict", "export") else []
    config = ["--config", str(run.config)]
    return [args[0], *config, *where, *names, *args[1:], f"--ckpt_path={run.checkpoint}"]


def _check_is_name(name: str, runs: Path) -> None:
    """Refuse the path of a run in place of its name, such as that of a run that was moved.

    Raises:
        UserError: If there is no run of this name, but a run or a checkpoint at this path.
    """
    if not (runs / name).exists() and is_run_or_checkpoint(Path(name)):
        raise UserError(
            f"There is no run {runs / name}, but {name} is a run or a checkpoint: use --ckpt_path"
            f" {quoted(name)} instead of --name."
        )


def _check_is_no_keyword(given: str, runs: Path) -> None:
    """Refuse a misspelt ``best`` or ``last``.

    Raises:
        UserError: If the value is close to one of them, and no checkpoint or run.
    """
    if not (Path(given).exists() or (runs / given).exists()):
        refuse_misspelt_keyword(given)


def refuse_misspelt_keyword(given: str) -> None:
    """Refuse a value of ``--ckpt_path`` that is close to ``best`` or ``last``.

    Args:
        given: The value, which is no file or folder.

    Raises:
        UserError: If it is.
    """
    if meant := suggest(given, KEYWORDS):
        raise UserError(f"There is no checkpoint {given}.{meant}")


def _beside(config: Path) -> list[str]:
    """Options that make the folder of the results: beside the versions of a run, or in its folder.

    Args:
        config: ``config.yaml`` of the run, such as ``runs/first/version_0/config.yaml``, whose
            results go to ``runs/first``. A folder of another name, such as ``copied``, gets them
            itself.
    """
    folder = config.absolute().parent
    if re.fullmatch(r"version_\d+", folder.name):
        folder = folder.parent
    if not is_name(folder.name):  # also of the root of a disk, which has none
        return []
    root = from_here(folder.parent)
    return [f"--name={folder.name}", f"--trainer.default_root_dir={root}"]


def _check_same_run(given: str, run: TrainedRun, named: Path) -> None:
    """Refuse a checkpoint of one run with the name of another one.

    Its results would be in the folder of a network that they are not from. A name that is no run
    yet, or that the run of the checkpoint had before it was moved, is accepted.

    Args:
        given: ``--ckpt_path``.
        run: The run that it refers to.
        named: Folder of the runs named ``--name``.

    Raises:
        UserError: If there is such a run, and it is another one.
    """
    if not is_run(named) or named.resolve() in run.checkpoint.resolve().parents:
        return
    owner = read_settings(run.config).get("name")
    if owner not in (None, named.name):
        raise UserError(
            f"{given} is a checkpoint of the run {owner}, but --name {named.name} is another run."
            " Leave out --ckpt_path or --name, or give --name a new name for the results."
        )


def run_with_settings(args: list[str], run: Callable[[list[str]], int]) -> int:
    """Run a command with `with_settings_of_run`.

    A training replaces its best checkpoint at any time. If the chosen one has gone when the command
    reads it, the run is searched once more.

    Args:
        args: The command and its arguments.
        run: Runs the command with the completed arguments, and returns its exit status.

    Raises:
        UserError: If the run or its checkpoint is missing, and all errors of the command.
    """
    try:
        return run(with_settings_of_run(args))
    except AbsentCheckpointError:
        # Ranks that are launched together must not choose different checkpoints.
        if {"RANK", "LOCAL_RANK", "SLURM_PROCID"} & os.environ.keys():
            raise
        return run(with_settings_of_run(args))


def tell_if_not_best(source: str | Path, checkpoint: Path) -> None:
    """Print a note if a run has no best checkpoint, so that its last one is used.

    Args:
        source: The run that was given.
        checkpoint: Its checkpoint.
    """
    note = instead_of_best(source, checkpoint)
    if note is not None and is_first_rank():
        print(f"note: {printable(note)}", flush=True)


def _class_names(run: TrainedRun) -> list[str]:
    """Option with the class names of the checkpoint, if the dataset of the run is not here."""
    data = init_arguments(read_settings(run.config), "data")
    root = data.get("root")
    if not isinstance(root, str) or data.get("class_names") is not None:
        return []
    # With paths of the annotation files, the root may be a folder that always exists, such as ".".
    if (Path(root) / str(data.get("train_annotations") or "")).exists():
        return []
    names = read_entries(run.checkpoint).get("class_names")
    return [f"--data.class_names={json.dumps(names)}"] if names else []
