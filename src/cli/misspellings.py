"""Refuse misspelt options before a command is loaded, and name the option that was meant.

The parser of the settings finds misspelt ones as well, but only once there is a recipe. Without
this check, ``predict --nmae first`` would be answered by the advice to give a recipe.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from src.cli.other_names import no_such_option
from src.errors import UserError

_GROUPS = (
    "model",
    "data",
    "trainer",
    "checkpoint",
    "data_waiting",
    "detections",
    "label_maps",
    "lr_monitor",
    "model_summary",
    "panoptic",
    "predictions",
    "terminate_on_nan",
)
"""First words of the settings of a recipe."""
RECIPE = ("name", "config", "ckpt_path")
"""Options that bring the settings of a recipe or a run."""
OPTIONS = (
    *RECIPE,
    *_GROUPS,
    "help",
    "help_all",
    "print_config",
    "seed_everything",
    "weights_only",
)
"""First words of the options of all commands that read a recipe."""
OWN_OPTIONS = {
    "fit": "",
    "validate": "verbose",
    "test": "verbose",
    "predict": "return_predictions",
    "export": "out format dcn outputs preprocessing masks precision check push",
    "benchmark": "warmup steps one_batch output",
    "plan": (
        "gpus memory batch_size global_batch num_classes tflops images pairs epochs peak_tflops"
        " utilisation kilobytes gpus_per_node"
    ),
}
"""Commands that read a recipe, and the further options of each."""
_NEEDS = {"ckpt_path": "last, best or a file", "config": "a .yaml file", "c": "a .yaml file"}
_HYPHEN = re.compile(r"(--?\w+\.[\w.-]*-[\w.-]*)\+?(?:=.*)?", re.DOTALL)
_OPTION = re.compile(r"(--?)([A-Za-z][\w-]*)((?:\.[\w.]*)?)\+?(?:=.*)?", re.DOTALL)


def needed_value(option: str, command: str = "") -> str:
    """Message about an option without its value.

    Args:
        option: The option as it was given, with hyphens.
        command: The command; ``--name`` of ``prepare`` is not that of a run.
    """
    needs = _NEEDS if command == "prepare" else {"name": "a run's name", **_NEEDS}
    return f"{option} needs {needs.get(option.lstrip('-'), 'a value')}."


def check_values_given(command: str, args: Sequence[str]) -> None:
    """Refuse ``--option=``, and ``--name``, ``--ckpt_path`` or ``--config`` without a value.

    Raises:
        UserError: If there is one.
    """
    for arg, following in zip(args, [*args[1:], "-"], strict=False):
        has_none = not following or following.startswith("-")
        is_of_run = arg in ("-c", *(f"--{name}" for name in RECIPE))
        if (is_of_run and has_none) or re.fullmatch(r"--?[\w.-]+=", arg):
            raise UserError(needed_value(arg.rstrip("="), command))


def is_recipe_given(command: str, args: Iterable[str]) -> bool:
    """Whether the arguments name a recipe or a run; ``--name`` of ``fit`` is that of a new run."""
    names = {arg.partition("=")[0] for arg in args}
    recipe = {"-c", "--config", "--ckpt_path"} | ({"--name"} if command != "fit" else set())
    return not names.isdisjoint(recipe)


def check_spelling(command: str, args: Sequence[str]) -> None:
    """Refuse a misspelt option of a command that reads a recipe.

    With a recipe, names that are close to no option of the command are left to the parser of the
    settings, which knows all of them. Other commands have a parser that knows all their options.

    Args:
        command: The command.
        args: Its arguments.

    Raises:
        UserError: If there is one.
    """
    if command not in OWN_OPTIONS:
        return
    for match in filter(None, map(_HYPHEN.fullmatch, args)):
        name = match[1].lstrip("-").replace("-", "_")
        raise UserError(f"There is no option {match[1]}. Did you mean --{name}?")
    own, has_recipe = OWN_OPTIONS[command].split(), is_recipe_given(command, args)
    is_read_later = has_recipe and command in ("fit", "validate", "test", "predict")
    known = {*own, *RECIPE} if has_recipe else {*own, *OPTIONS}
    following = dict(pairwise(args))
    for arg, match in _options(args):
        hyphens, name, rest = match[1], match[2], match[3]
        if name in {"c", "h"} or (hyphens == "--" and name in {*known, *OPTIONS}):
            continue
        given = f"{hyphens}{name}{rest}"
        value = arg.partition("=")[2] or following.get(arg, "")
        if rest:
            found = close_options(name, _GROUPS)[:1]
        elif is_read_later and hyphens == "--":
            continue
        elif value.endswith((".yaml", ".yml")) and "config".startswith(name):
            found = ["config"]  # also of `--conf`, which is a threshold in ultralytics
        else:
            found = close_options(name, own, cutoff=0.8)
            if not found and (message := no_such_option(given)) is not None:
                raise UserError(message)
            found = found or close_options(name, known, cutoff=0.7 if has_recipe else 0.6)
        if found and (not rest or _is_setting(found[0], rest)):
            raise UserError(f"There is no option {given}.{did_you_mean(found, rest)}")


def close_options(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """Options that a misspelt or abbreviated name may stand for, at most two.

    Args:
        name: The name, without hyphens.
        known: Names to choose from, without hyphens.
        cutoff: Smallest similarity, from 0 to 1, unless one is the beginning of the other.
    """
    plain = name.lower().replace("-", "_")
    of_plain = {option.lower().replace("-", "_"): option for option in sorted(known)}
    if plain in of_plain:
        return [of_plain[plain]]
    begins = [key for key in of_plain if key.startswith(plain)]
    if len(plain) > 1:
        begins += [key for key in of_plain if len(key) > 1 and plain.startswith(key)]
    if 1 <= len(begins) <= 2:
        return [of_plain[key] for key in sorted(begins, key=len)]
    return [of_plain[key] for key in difflib.get_close_matches(plain, of_plain, 1, cutoff)]


def did_you_mean(options: Sequence[str], rest: str = "") -> str:
    """Question with a leading space, or nothing without options.

    Args:
        options: Names without hyphens.
        rest: What follows each of them, for example ``.weights``.
    """
    names = " or ".join(f"--{option}{rest}" for option in options)
    return f" Did you mean {names}?" if names else ""


def _options(args: Iterable[str]) -> list[tuple[str, re.Match[str]]]:
    return [(arg, match) for arg in args if (match := _OPTION.fullmatch(arg)) is not None]


def _is_setting(group: str, rest: str) -> bool:
    """Whether a group may have a setting; only those of the trainer are known here."""
    known = trainer_settings() if group == "trainer" else set()
    return not known or rest.split(".")[1] in known


def trainer_settings() -> set[str]:
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
