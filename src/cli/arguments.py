"""Order and check the arguments of a command before they are parsed.

This module does not import PyTorch or Lightning, so that these errors are reported at once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from src.cli.other_names import no_such_option
from src.cli.suggestions import suggest
from src.errors import UserError

_GROUPS = ("model", "data", "trainer", "checkpoint")
"""Options that a class or a file can be given for, also if other libraries use these names."""

GIVE_RECIPE = (
    "Give a recipe with --config configs/<recipe>.yaml, or a trained run with --ckpt_path FILE"
    " (validate, test and predict: or --name RUN)."
)
_RECIPE = ("--config", "-c", "--name", "--ckpt_path")
_PARTS = ("--model", "--data", "--help", "-h", "--print_config")
"""Options without which a command needs a recipe."""


def check_recipe(command: str, args: Sequence[str]) -> None:
    """Refuse a command without a recipe, a run, or settings in place of them.

    Raises:
        UserError: If there is none.
    """
    if args and not args[0].startswith("-"):
        return  # reported later, with the option to use
    if command == "export" and not any(arg.startswith((*_RECIPE, "--help", "-h")) for arg in args):
        raise UserError(
            "export needs --name RUN, --ckpt_path FILE, or --config FILE, the recipe that the"
            " network was trained with."
        )
    is_without = not any(arg.startswith((*_RECIPE, *_PARTS)) for arg in args)
    if command in ("fit", "validate", "test", "predict", "plan", "benchmark") and is_without:
        raise UserError(f"Missing settings: data and model. {GIVE_RECIPE}")


def check_trainer_settings(args: Sequence[str]) -> None:
    """Refuse settings that Lightning's trainer does not have, before Lightning is imported.

    Raises:
        UserError: If there is one.
    """
    given = [match for arg in args if (match := re.match(r"--(trainer\.(\w+)[\w.]*)", arg))]
    known = _trainer_settings() if given else set()
    for match in given if known else ():
        if match[2] not in known:
            hint = suggest(match[2], [f"trainer.{name}" for name in known], option=True)
            raise UserError(
                no_such_option(f"--{match[1]}")
                or f"There is no setting {match[1]!r}.{hint or ' See --help.'}"
            )


def _trainer_settings() -> set[str]:
    """Arguments of Lightning's trainer from its source code; empty if it is not where expected."""
    spec = find_spec("lightning")  # which does not import it
    folder = Path(spec.origin if spec and spec.origin else "").parent
    path = folder / "pytorch" / "trainer" / "trainer.py"
    if not path.is_file():
        return set()
    parts = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    trainer = next(p for p in parts if isinstance(p, ast.ClassDef) and p.name == "Trainer")
    (start,) = (p for p in trainer.body if isinstance(p, ast.FunctionDef) and p.name == "__init__")
    return {argument.arg for argument in (*start.args.args, *start.args.kwonlyargs)}


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
