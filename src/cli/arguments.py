"""Order and check the arguments of a command before they are parsed.

This module does not import PyTorch or Lightning, so that these errors are reported at once.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from src.cli.misspellings import OWN_OPTIONS, is_recipe_given, trainer_settings
from src.cli.other_names import answer_for, no_such_option
from src.cli.suggestions import suggest
from src.config_files import CONFIGS, own_recipe
from src.errors import UserError
from src.file_names import quoted, similar_file, similar_folder

_GROUPS = ("model", "data", "trainer", "checkpoint")
"""Options that a class or a file can be given for, also if other libraries use these names."""

GIVE_RECIPE = (
    "Give a recipe with --config configs/<recipe>.yaml, or a trained run with --ckpt_path FILE"
    " (all commands but fit: or --name RUN)."
)
_GIVE_RECIPE_OR_RUN = (
    "Give a recipe with --config configs/<recipe>.yaml, or a trained run with --name RUN or"
    " --ckpt_path FILE."
)
_YAML = (".yaml", ".yml")
_PARTS = ("--model", "--data", "--help", "-h", "--help_all", "--print_config")
"""Options without which a command needs a recipe."""


def check_recipe(command: str, args: Sequence[str]) -> None:
    """Refuse a command without a recipe, a run, or settings in place of them.

    Raises:
        UserError: If there is none.
    """
    if args and not args[0].startswith("-"):
        return  # reported later, with the option to use
    names = [arg.partition("=")[0] for arg in args]
    if (
        command not in OWN_OPTIONS
        or is_recipe_given(command, args)
        or {"-h", "--help"} & set(names)
    ):
        return
    if command == "export":
        raise UserError(
            "export needs --name RUN, --ckpt_path FILE, or --config FILE, the recipe that the"
            " network was trained with."
        )
    if any(name in _PARTS for name in names):
        return
    for group in ("model", "data"):
        if any(name.startswith(f"--{group}.") for name in names):
            raise UserError(settings_of_nothing(group, _give_recipe(command, args)))
    if command == "fit":
        raise UserError(f"fit needs a recipe. {_give_recipe(command, args)}")
    raise UserError(f"{command} needs a recipe or a run. {_give_recipe(command, args)}")


def settings_of_nothing(group: str, advice: str = GIVE_RECIPE) -> str:
    """Message about settings of a model or of data that no recipe gives.

    Args:
        group: The beginning of their names, for example ``model``.
        advice: Sentence about what to give.
    """
    return f"--{group}.* settings change those of a recipe or a run, and none is given. {advice}"


def _give_recipe(command: str, args: Sequence[str]) -> str:
    """Sentence about what to give; for ``fit``, with the recipe of the dataset of this name."""
    if command != "fit":
        return _GIVE_RECIPE_OR_RUN
    name = option(args, "--name") or ""
    own = own_recipe(name) or own_recipe(name.removesuffix("_trial"))
    if own is not None:
        return f"Add --config {quoted(own)}."
    return "Add --config configs/<recipe>.yaml, or --ckpt_path FILE to continue a run."


def check_trainer_settings(args: Sequence[str]) -> None:
    """Refuse settings that Lightning's trainer does not have, before Lightning is imported.

    Raises:
        UserError: If there is one.
    """
    given = [match for arg in args if (match := re.match(r"--(trainer\.([\w-]+)[\w.-]*)", arg))]
    known = trainer_settings() if given else set()
    for match in given if known else ():
        if match[2] not in known:
            hint = suggest(match[2], [f"trainer.{name}" for name in known], option=True)
            raise UserError(
                no_such_option(f"--{match[1]}")
                or f"There is no setting {match[1]!r}.{hint or ' See --help.'}"
            )


def check_files(args: Sequence[str]) -> None:
    """Refuse configuration files that do not exist.

    Raises:
        UserError: If there is one.
    """
    for arg, following in zip(args, [*args[1:], ""], strict=False):
        name, _, value = arg.partition("=")
        given = value or following
        is_text = re.search(r"[{}:\n]", given) is not None  # settings in place of a file
        if name not in ("--config", "-c") or not given or Path(given).exists():
            continue
        if given.endswith(_YAML) or not (is_text or given.startswith("-")):
            hint = _similar_config(Path(given))
            raise UserError(f"The configuration file {given} does not exist.{hint}")


def _similar_config(path: Path) -> str:
    """A suggestion for a missing configuration file, with a leading space; empty without one.

    Args:
        path: The file; the ending, ``configs/`` or the folder within it may be left out.
    """
    stem = path.name.removesuffix(path.suffix) if path.suffix in _YAML else path.name
    names = [path.with_name(stem + ending) for ending in _YAML]
    files = [*names, *(CONFIGS / name for name in names if not name.is_absolute())]
    found = next((file for file in files if file.is_file()), None)
    if found is None and (close := similar_file(names[0])):
        return close
    if found is None and (folder := similar_folder(path.parent)) is not None:
        inside = [folder / name.name for name in names]
        if (there := next((file for file in inside if file.is_file()), None)) is not None:
            return f" Did you mean {there}?"
        if close := similar_file(inside[0]):
            return close
    if found is None:
        recipes = {recipe.name: recipe for recipe in sorted(CONFIGS.rglob("*.yaml"))}
        similar = difflib.get_close_matches(names[0].name, recipes, n=1, cutoff=0.8)
        found = recipes[similar[0]] if similar else None
    if found is not None and found.is_relative_to(CONFIGS):
        found = "configs" / found.relative_to(CONFIGS)  # which `find_configs` finds in any folder
    return "" if found is None else f" Did you mean {found}?"


def checked(args: list[str], after: int) -> list[str]:
    """Arguments with the configuration files before the options that override them.

    Args:
        args: The arguments.
        after: Number of leading arguments that stay in their place: 1 for a command.

    Raises:
        UserError: If a setting has no value or the name that another library gives it, an argument
            follows no option, or a configuration file is of another kind or no valid YAML.
    """
    configs: list[str] = []
    rest: list[str] = []
    given = iter(args[after:])
    for arg in given:
        if arg in ("--config", "-c"):
            configs += [arg, *(value for value in [next(given, None)] if value is not None)]
        else:
            (configs if arg.startswith(("--config=", "-c=")) else rest).append(arg)
    _check_follow_options(rest)
    for config in (*configs, option(rest, "--data") or ""):
        _check_is_settings(Path(config.partition("=")[2] or config))
    for value in rest:
        path = Path(value.partition("=")[2] or value)
        if path.suffix in (".yaml", ".yml") and path.is_file():
            _check_syntax(path, path.read_text(encoding="utf-8", errors="replace"))
    _check_values(rest)
    return [*args[:after], *configs, *rest]


def _check_follow_options(args: Sequence[str]) -> None:
    """Refuse an argument that is neither an option nor the value of one."""
    for before, arg in zip(["", *args], args, strict=False):
        if not arg.startswith("-") and (not before.startswith("-") or "=" in before):
            raise UserError(_loose_argument(arg))


def _loose_argument(argument: str) -> str:
    """Message about an argument that does not follow an option."""
    from src.data.formats.image_files import is_image  # late: both need packages
    from src.runs import is_run_or_checkpoint

    name, separator, value = argument.partition("=")
    path, word = Path(argument), quoted(argument)
    if is_run_or_checkpoint(path):
        return f"Unexpected argument {argument!r}; use --ckpt_path {word}."
    if separator and re.fullmatch(r"[\w.]+", name):
        answer = answer_for(name)
        use = f"--{name}={value}" if answer is None else answer
        return f"Unexpected argument {argument!r}; options start with two hyphens: {use}."
    if path.suffix in (".yaml", ".yml"):
        return f"Unexpected argument {argument!r}; use --config {word} for a settings file."
    if path.exists() or is_image(path):
        dataset = f", or --data.root {word} for a dataset" if path.is_dir() else ""
        return (
            f"Unexpected argument {argument!r}; use --data.predict_dir {word} for images to"
            f" predict{dataset}."
        )
    return f"Unexpected argument {argument!r}; every value follows an option such as --config."


def _check_is_settings(path: Path) -> None:
    """Refuse a checkpoint, another binary file, COCO annotations or a YOLO dataset."""
    if not path.is_file():
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        advice = (
            f"use --ckpt_path {quoted(path)}" if path.suffix == ".ckpt" else "give a .yaml file"
        )
        raise UserError(f"{path} is not a settings file; {advice}.") from error
    if {"train", "names"} <= {line.partition(":")[0] for line in text.splitlines()}:
        raise UserError(
            f"{path} describes a YOLO dataset; convert it by `python -m src prepare from-yolo"
            f" {quoted(path.parent)}` first."
        )
    if _is_coco(text):
        raise UserError(
            f"{path} is a COCO annotation file; make a recipe by `python -m src prepare from-coco"
            f" {quoted(path)}` first."
        )
    _check_syntax(path, text)


def _is_coco(text: str) -> bool:
    """Whether the content of a file is that of a COCO annotation file."""
    if not text.lstrip().startswith("{"):
        return False
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return False  # settings may be YAML in braces
    return {"images", "annotations"} <= content.keys()


def _check_syntax(path: Path, text: str) -> None:
    """Refuse a settings file that is not valid YAML."""
    import yaml  # late, because the environment may be empty

    try:
        yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = ", ".join(filter(None, (error.context, error.problem)))
        raise UserError(
            f"The configuration file {path} is not valid YAML{where}: {reason}."
        ) from error
    except RecursionError as error:
        raise UserError(f"The configuration file {path} is nested too deeply.") from error
    except yaml.YAMLError as error:  # characters that YAML does not have
        reason = " ".join(str(error).split())
        raise UserError(f"The configuration file {path} is not valid YAML: {reason}.") from error


def _check_values(args: list[str]) -> None:
    """Refuse options of other libraries, all of them at once.

    A setting without a value is refused as well; the parser would report it as its parent.
    """
    names = [arg.partition("=")[0] for arg in args]
    options = [name for name in names if name.startswith("-") and "." not in name]
    others = (no_such_option(name) for name in options if name.lstrip("-") not in _GROUPS)
    if messages := list(dict.fromkeys(filter(None, others))):
        raise UserError(" ".join(messages))
    for arg, following in zip(args, [*args[1:], "--"], strict=False):
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
