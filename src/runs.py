"""Find the configuration and the checkpoints of a training run.

The folder of a run, ``runs/<name>/version_<n>``, contains ``config.yaml`` and ``checkpoints``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from src.config_files import own_recipe
from src.errors import UserError
from src.file_names import quoted, similar_file, similar_folder

KEYWORDS = ("last", "best")
CONFIG = "config.yaml"
ENVIRONMENT = "env.txt"
_HPARAMS, _EVENTS = "hparams.yaml", "events.out.tfevents"  # of the default loggers
TRIAL = "_trial"
"""End of the name of a short trial of a run, which `fit` proposes."""
_MAX_CONFIG = 2**20  # bytes


class AbsentCheckpointError(UserError):
    """A checkpoint file does not exist."""


@dataclass(frozen=True)
class TrainedRun:
    """A checkpoint, and the configuration that it was trained with.

    Attributes:
        checkpoint: A checkpoint file, or the folder of a sharded checkpoint.
        config: The ``config.yaml`` of the run.
    """

    checkpoint: Path
    config: Path


def trained_run(
    source: str | Path, keyword: str | None = None, runs: Path = Path("runs")
) -> TrainedRun:
    """The checkpoint and the configuration that a path or the name of a run refers to.

    Args:
        source: See `find_checkpoint`.
        keyword: See `find_checkpoint`.
        runs: See `find_checkpoint`.

    Raises:
        UserError: If there is no such checkpoint, or no ``config.yaml`` of its run.
    """
    checkpoint = find_checkpoint(source, keyword, runs)
    return TrainedRun(checkpoint, config_of(checkpoint))


def find_checkpoint(
    source: str | Path, keyword: str | None = None, runs: Path = Path("runs")
) -> Path:
    """The checkpoint that a path or the name of a run refers to.

    Args:
        source: A checkpoint; the folder of a run (``runs/street/version_0``); the folder of all
            runs of a name (``runs/street``), of which the newest is used; or the name (``street``).
        keyword: ``best`` or ``last``: the checkpoint to use unless ``source`` is one. Default: the
            best one, or the last one of a run that has no best one (see `instead_of_best`).
        runs: Folder of the named runs.

    Raises:
        UserError: If there is none.
    """
    path = Path(source)
    if not path.name:  # "." has no name
        path = path.absolute()
    if not path.exists() and path.name == str(path):
        path = runs / path
    if not path.exists() and path.suffix != ".ckpt":
        raise UserError(_no_run(path, runs))
    # Imported where they are needed: they import PyTorch, which takes seconds.
    from src.distributed.checkpoints import is_sharded_checkpoint
    from src.serialization import REST

    if path.is_file() or is_sharded_checkpoint(path):
        return path
    if (path / "checkpoints").is_dir():
        return newest_checkpoint(keyword, path.parent, path.name)
    if any(path.glob("version_*")):
        return newest_checkpoint(keyword, path)
    if path.is_dir() and path.suffix == ".ckpt":
        raise UserError(
            f"The folder {path} is not a complete checkpoint: .metadata or {REST} is missing."
            " Use an older checkpoint, or copy the folder again."
        )
    if path.suffix == ".ckpt":
        advice = (
            " Give a .ckpt file or the folder of a run (on the command line also 'last' or 'best',"
            f" for the newest one in {runs})."
        )
        raise AbsentCheckpointError(
            f"The checkpoint {source} does not exist.{similar_file(path) or advice}"
        )
    others = other_versions(path) or _others(runs)
    if any(path.glob(f"*/{CONFIG}")):  # results of other commands
        raise UserError(
            f"{path} has no checkpoint; train the network with fit, or name another run."
            f"{trial_of(path)}{others}"
        )
    raise UserError(f"{path} is not the folder of a run.{others}")


def _no_run(path: Path, runs: Path) -> str:
    """Message about the path of a run of which there is nothing."""
    others = other_versions(path) or _others(runs)
    recipe = own_recipe(path.name)
    first = (
        "" if recipe is None else f" Train it first: python -m src fit --config {quoted(recipe)}"
    )
    known = [name for name in runs_with_checkpoints(runs) if name != f"{path.name}{TRIAL}"]
    close = difflib.get_close_matches(path.name, known, n=1)
    hint = f" Did you mean {close[0]}?" if close and not first else ""
    if (
        not close
        and not other_versions(path)
        and (folder := similar_folder(path)) is not None
        and is_run(folder)
    ):
        hint = f" Did you mean {folder}?"
    hint = trial_of(path) or hint
    is_known = path.is_absolute() or bool(other_versions(path))
    where = "" if is_known else f" in the current folder, {Path.cwd()}"
    if not (hint or others or first):
        first = (
            " Change to the folder in which it was trained, or give the path of the run (on the"
            " command line with --ckpt_path)."
        )
    return f"There is no run {path}{where}.{hint}{others}{first}"


def trial_of(path: Path) -> str:
    """Sentence about a trial of a run that has a checkpoint, with a leading space, or nothing.

    Args:
        path: Folder of all runs of a name, such as ``runs/street``.
    """
    trial = path.with_name(f"{path.name}{TRIAL}")
    has_trial = bool(path.name) and bool(versions_with_checkpoints(trial))
    return f" Its trial {trial.name} has a checkpoint: use {trial.name} instead." * has_trial


def is_run_or_checkpoint(path: Path) -> bool:
    """Whether a path looks like a checkpoint or the folder of a run."""
    return path.exists() and (path.suffix == ".ckpt" or is_run(path))


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run, or has versions of one."""
    return (path / CONFIG).is_file() or any(path.glob("version_*"))


def config_of(checkpoint: Path) -> Path:
    """The ``config.yaml`` of the run that a checkpoint belongs to.

    Raises:
        UserError: If it is not in the folder of the checkpoint or in the one above.
    """
    folder = checkpoint.absolute().parent
    if ".." in folder.parts:  # or else the folder above would be the one before the dots
        folder = folder.resolve()
    found = [folder / CONFIG, folder.parent / CONFIG]
    config = next((path for path in found if path.is_file()), None)
    if config is None:
        raise UserError(
            f"There is no {CONFIG} of the run of {folder / checkpoint.name} (searched in {folder}"
            f" and {folder.parent}). Copy the {CONFIG} of its run beside it, or give the folder of"
            " the run (on the command line also its recipe, with --config FILE)."
        )
    return from_here(config)


def read_settings(path: Path) -> dict[str, Any]:
    """The configuration of a run as plain values.

    Raises:
        UserError: If it is too large, cannot be read, or is not a configuration.
    """
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise UserError(f"{path} has more than {_MAX_CONFIG:,} bytes.")
        text = path.read_text(encoding="utf-8")
        # With references to lists of references, a few lines describe endless settings.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise UserError(f"{path} has references (*name); write out what they refer to.")
        settings = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        from src.serialization import shown

        reason = shown(" ".join(str(error).split()), 160)
        raise UserError(f"The configuration {path} cannot be read: {reason}.") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path} is not the configuration of a run.")
    return settings


def init_arguments(settings: dict[str, Any], part: str) -> dict[str, Any]:
    """``init_args`` of the model or the data.

    Args:
        settings: From `read_settings`.
        part: ``model`` or ``data``.

    Raises:
        UserError: If there are none.
    """
    section = settings.get(part)
    arguments = section.get("init_args") if isinstance(section, dict) else None
    if not isinstance(arguments, dict):
        raise UserError(f"The configuration has no {part}.init_args; is it that of a run?")
    return arguments


def instead_of_best(source: str | Path, checkpoint: Path) -> str | None:
    """Message if the last checkpoint of a run is used because there is no best one, else ``None``.

    Args:
        source: What was given to `find_checkpoint`, without a keyword.
        checkpoint: What it returned.
    """
    if ".ckpt" in Path(source).name or not checkpoint.name.startswith("last.ckpt"):
        return None
    return (
        f"{source} has no best checkpoint, which is written after a validation; its last one is"
        f" used: {checkpoint}"
    )


def newest_checkpoint(keyword: str | None, runs: Path, version: str = "version_*") -> Path:
    """The newest ``last`` or ``best`` checkpoint of the runs of one name.

    Args:
        keyword: ``last``, or ``best`` for the best checkpoint of the newest run that has one;
            ``None`` for the last one if there is no best one.
        runs: Folder with the ``version_*`` folders.
        version: Name of the only folder to search, instead of all.

    Raises:
        UserError: If there is none.
    """
    if keyword is None:
        keyword = "best" if checkpoints("best", runs, version) else "last"
    found = checkpoints(keyword, runs, version)
    if not found:
        other = KEYWORDS[keyword == "last"]
        has_other = any(runs.glob(f"{version}/checkpoints/{other}*.ckpt"))
        reason = "; it is written after a validation" if keyword == "best" else ""
        if has_other:
            advice = f"There is a {other!r} one: add --ckpt_path {other}."
        else:
            advice = (
                f"{trial_of(runs)}{_others(runs)} Give a checkpoint, or on the command line the"
                " --name of another run, or omit --ckpt_path to start from the beginning."
            ).lstrip()
        raise UserError(
            f"There is no {keyword!r} checkpoint in {runs}/{version}/checkpoints{reason}. {advice}"
        )
    newest = max(found, key=age)
    return newest if keyword == "last" else _best_of_run(newest)


def has_results(folder: Path) -> bool:
    """Whether a run folder has files other than the records of its start and its event file.

    Args:
        folder: A run folder.
    """
    records = (CONFIG, ENVIRONMENT, _HPARAMS)
    return any(
        not (path.is_dir() or path.name in records or path.name.startswith(_EVENTS))
        for path in folder.rglob("*")
    )


def checkpoints(keyword: str, runs: Path, version: str = "version_*") -> list[Path]:
    """All ``last`` or ``best`` checkpoints of the runs of one name; see `newest_checkpoint`."""
    pattern = "last" if keyword == "last" else "best*"  # not last_whole.ckpt (`consolidate`)
    found = list(runs.glob(f"{version}/checkpoints/{pattern}.ckpt"))
    # A process killed between two renames leaves its checkpoint under this name.
    spare = runs.glob(f"{version}/checkpoints/{pattern}.ckpt.old")
    return found + [path for path in spare if path.with_suffix("") not in found]


def age(path: Path) -> tuple[int, list[int], int]:
    """Sort key: version number, epoch and step, and the file time only if these are equal."""
    run = re.fullmatch(r"version_(\d+)", path.parts[-3])
    progress = [int(number) for number in re.findall(r"=(\d+)", path.name)]
    return int(run[1]) if run else -1, progress, path.stat().st_mtime_ns


def _best_of_run(checkpoint: Path) -> Path:
    """The best checkpoint of the run that wrote this one.

    With ``save_top_k`` above 1, the newest ``best*`` checkpoint is not always the best one, but it
    records the path of the best one.

    Raises:
        UserError: If that is not in a folder of the same run.
    """
    from src.serialization import read_entries, shown

    content = read_entries(checkpoint)
    states = content.get("callbacks", {}).values()
    named = [state.get("best_model_path") for state in states if isinstance(state, dict)]
    known = [Path(path) for path in named if isinstance(path, str) and Path(path).name]
    moved = [checkpoint.with_name(path.name) for path in known]
    found = next((path for path in (*moved, *known) if path.exists()), checkpoint)
    # The run may have been resumed from an earlier version. A file must not refer to other folders,
    # because their config.yaml is used as well.
    if checkpoint.parent.resolve().parents[1] not in found.resolve().parents:
        raise UserError(
            f"The best checkpoint of the run of {checkpoint} is {shown(found, 300)}, which is not"
            " in a folder of this run. To use it, give its path (on the command line as"
            " --ckpt_path)."
        )
    return found if checkpoint.is_absolute() else from_here(found)


def from_here(path: Path) -> Path:
    """The path relative to the working directory if it is inside."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _others(runs: Path) -> str:
    """Names of the runs that have checkpoints, with a leading space, for messages."""
    parent = runs if any(runs.glob("*/version_*")) else runs.parent
    names = runs_with_checkpoints(parent)
    return f" {with_checkpoints('run', parent, names[:10])}" if names else ""


def other_versions(path: Path) -> str:
    """Versions of the run that ``path`` would be one of, with a leading space, for messages."""
    found = versions_with_checkpoints(path.parent)[-10:]
    return f" {with_checkpoints('version', path.parent, found)}" if found else ""


def with_checkpoints(kind: str, folder: Path, names: Sequence[str]) -> str:
    """Sentence about the runs or versions in a folder that have checkpoints.

    Args:
        kind: ``run`` or ``version``.
        folder: The folder.
        names: Their names, at least one.
    """
    if len(names) == 1:
        return f"The only {kind} with checkpoints in {folder} is {names[0]}."
    return f"{kind.capitalize()}s with checkpoints in {folder} are {', '.join(names)}."


def versions_with_checkpoints(runs: Path) -> list[str]:
    """Names of the versions of a run that have checkpoints, oldest first."""
    found = {path.parts[-3]: path for path in runs.glob("version_*/checkpoints/*.ckpt")}
    return sorted(found, key=lambda name: age(found[name])[0])


def runs_with_checkpoints(runs: Path) -> list[str]:
    """Names of the runs in a folder that have checkpoints."""
    return sorted({path.parts[-4] for path in runs.glob("*/version_*/checkpoints/*.ckpt")})
