"""Order and check the arguments of a command before they are parsed.

This module does not import PyTorch or Lightning, so that these errors are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from src.cli.other_names import no_such_option
from src.errors import UserError

_GROUPS = ("model", "data", "trainer", "checkpoint")
"""Options that a class or a file can be given for, also if other libraries use these names."""


def check_files(args: Sequence[str]) -> None:
    """Refuse configuration files that do not exist.

    Raises:
        UserError: If there is one.
    """
    for arg, following in zip(args, [*args[1:], ""], strict=False):
        name, _, value = arg.partition("=")
        path = Path(value or following)
        if name in ("--config", "-c") and path.suffix in (".yaml", ".yml") and not path.exists():
            raise UserError(f"The configuration file {path} does not exist.")


def checked(args: list[str], after: int) -> list[str]:
    """Arguments with the configuration files before the options that override them.

    Args:
        args: The arguments.
        after: Number of leading arguments that stay in their place: 1 for a command.

    Raises:
        UserError: If a setting has no value or the name that another library gives it, or a
            configuration file is of another kind.
    """
    configs: list[str] = []
    rest: list[str] = []
    given = iter(args[after:])
    for arg in given:
        if arg in ("--config", "-c"):
            configs += [arg, *(value for value in [next(given, None)] if value is not None)]
        else:
            (configs if arg.startswith(("--config=", "-c=")) else rest).append(arg)
    for config in (*configs, option(rest, "--data") or ""):
        _check_is_settings(Path(config.partition("=")[2] or config))
    _check_values(rest)
    return [*args[:after], *configs, *rest]


def _check_is_settings(path: Path) -> None:
    """Refuse a checkpoint, another binary file or the description of a YOLO dataset."""
    if not path.is_file():
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        advice = f"use --ckpt_path {path}" if path.suffix == ".ckpt" else "give a .yaml file"
        raise UserError(f"{path} is not a settings file; {advice}.") from error
    if {"train", "names"} <= {line.partition(":")[0] for line in text.splitlines()}:
        raise UserError(
            f"{path} describes a YOLO dataset; convert it by `python -m src prepare from-yolo"
            f" {path.parent}` first."
        )


def _check_values(args: list[str]) -> None:
    """Refuse options of other libraries.

    A setting without a value is refused as well; the parser would report it as its parent.
    """
    for arg, following in zip(args, [*args[1:], "--"], strict=False):
        name = arg.partition("=")[0]
        is_option = name.startswith("-") and "." not in name and name.lstrip("-") not in _GROUPS
        if is_option and (message := no_such_option(name)) is not None:
            raise UserError(message)
        found = re.fullmatch(r"(--\w+(?:\.\w+)+)(=?)", arg)
        if found and (found[2] or following.startswith("--")):
            raise UserError(f"{found[1]} needs a value.")


def option(args: Sequence[str], name: str) -> str | None:
    """Value of the last ``--name value`` or ``--name=value`` among arguments."""
    found = None
    for arg, following in zip(args, [*args[1:], ""], strict=False):
        if arg == name and not following.startswith("--"):
            found = following
        elif arg.startswith(f"{name}="):
            found = arg.partition("=")[2]
    return found or None
