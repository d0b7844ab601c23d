"""Task described by a checkpoint, and validation of its progress and schedules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Trainer
from torch import Tensor

from src.errors import UserError
from src.serialization import shown, shown_repr
from src.serialization.classes import check_arguments

Task = TypeVar("Task")
_IGNORED = ("_class_path", "_instantiator", "weights")


def make_task(
    cls: type[Task], saved: Mapping[str, Any], given: Mapping[str, Any], path: Path
) -> Task:
    """Build the task described by a checkpoint.

    Args:
        cls: The task, or a base class of it.
        saved: ``hyper_parameters`` of the checkpoint.
        given: Arguments of the caller, which override those of the file and are not validated.
        path: The file, for messages.

    Raises:
        UserError: If the task is not a known subclass of ``cls``, or an argument is invalid.
    """
    owner = _find(cls, saved.get("_class_path"), path)
    settings = {k: v for k, v in saved.items() if k not in (*_IGNORED, *given)}
    where = f"{path}: hyper_parameters"
    arguments = check_arguments(owner, settings, where) | dict(given)
    try:
        return owner(**arguments)
    except TypeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"Cannot create a {owner.__name__} from {where}: {reason}. Factories that were passed"
            " from Python are not saved in a checkpoint; pass them as arguments."
        ) from error


def check_progress(checkpoint: Mapping[str, Any], trainer: Trainer) -> None:
    """Check the types of the progress and the callback states in a checkpoint.

    Lightning copies them into its own objects without validation.

    Raises:
        UserError: If an entry is invalid; the message names the first one.
    """
    loops = {
        "fit": ("fit_loop", trainer.fit_loop),
        "validate": ("validate_loop", trainer.validate_loop),
        "test": ("test_loop", trainer.test_loop),
        "predict": ("predict_loop", trainer.predict_loop),
    }
    name, loop = loops[str(trainer.state.fn.value)] if trainer.state.fn else loops["fit"]
    progress = checkpoint.get("loops", {}).get(name, {})
    wrong = _first_difference(loop.state_dict(), progress, f"loops.{name}", exact=True)
    saved = checkpoint.get("callbacks", {})
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if callback.state_key in saved:
            where = f"callbacks.{type(callback).__name__}"
            state = saved[callback.state_key]
            wrong = wrong or _first_difference(callback.state_dict(), state, where, exact=False)
    if wrong is not None:
        raise UserError(
            f"The checkpoint is invalid: {shown(wrong)} has an unexpected type. Use an older"
            " checkpoint, or copy it again."
        )


def check_schedules(saved: Any) -> None:
    """Check the states of learning-rate schedules in a checkpoint.

    Raises:
        UserError: If an entry is invalid; the message names the first one.
    """
    if len(saved) > 1:
        raise UserError(
            f"The checkpoint has {len(saved)} learning-rate schedules, expected one. Use another"
            " checkpoint, or start a new run from the weights with --model.weights."
        )
    numbers = ("last_epoch", "best", "num_bad_epochs", "cooldown_counter")
    for state in saved:
        wrong = [k for k in numbers if not isinstance(state.get(k, 0), (int, float))]
        if wrong or not state:
            name = f"lr_schedulers.{wrong[0]}" if wrong else "lr_schedulers"
            raise UserError(f"The checkpoint is invalid: {shown(name)} has an unexpected type.")


def _first_difference(own: Any, value: Any, where: str, exact: bool) -> str | None:
    """Name of the first entry whose type differs; entries may be absent.

    If ``exact``, dictionaries of numbers have no additional entries, and no entry is ``None``.
    """
    if own is None or isinstance(own, Tensor):
        return None  # checked where the checkpoint was read
    if not isinstance(own, dict):
        numbers = not exact and isinstance(own, (int, float)) and isinstance(value, (int, float))
        fits = numbers or type(value) is type(own) or (value is None and not exact)
        return None if fits else where
    if not isinstance(value, dict):
        return where
    has_numbers = own and not any(isinstance(part, dict) for part in own.values())
    for key, part in value.items():
        found = None
        if key in own:
            found = _first_difference(own[key], part, f"{where}.{key}", exact)
        elif exact and has_numbers:
            found = f"{where}.{key}"
        if found is not None:
            return found
    return None


def _find(cls: type[Task], name: Any, path: Path) -> type[Task]:
    """The class that a checkpoint names, among those that are already imported."""
    if name is None:
        return cls
    waiting = [cls]
    for known in waiting:
        module = known.__module__
        if isinstance(name, str) and (
            name == f"{module}.{known.__qualname__}"
            or (name == f"src.tasks.{known.__name__}" and module.startswith("src.tasks."))
        ):
            return known
        waiting += type.__subclasses__(known)
    raise UserError(
        f"The checkpoint {path} is of the class {shown_repr(name)}, and there is no such"
        f" {cls.__name__}; import the module that defines it first."
    )
