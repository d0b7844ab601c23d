"""Argument parser of the tool commands, with one-line errors."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from src.cli.misspellings import close_options, did_you_mean, needed_value
from src.cli.suggestions import suggest
from src.errors import UserError
from src.file_names import quoted

_KINDS = {"int": "an integer", "float": "a number", "_count": "a number such as 427M"}


class ToolParser(argparse.ArgumentParser):
    """Parser without abbreviations that raises a `UserError` instead of exiting."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse the arguments; a subcommand reports those that it does not accept."""
        args = sys.argv[1:] if args is None else args
        self._check_options(args)
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            of_name = self._subcommands()
            chosen = next((of_name[given] for given in args if given in of_name), self)
            chosen.error(f"unrecognized arguments: {' '.join(rest)}")
        return found

    def option_names(self) -> list[str]:
        """Options without hyphens."""
        return [name.lstrip("-") for action in self._actions for name in action.option_strings]

    def _check_options(self, args: Sequence[str]) -> None:
        """Refuse an unknown option.

        argparse would first report what is missing because of it.
        """
        of_name = self._subcommands()
        name = next((arg for arg in args if arg in of_name), None)
        if of_name and args and args[0] not in (*of_name, *self._option_string_actions):
            self._check_first(args[0], name)
            return  # a misspelt subcommand
        parser = of_name[name] if name else self
        for arg, following in zip(args, [*args[1:], "-"], strict=False):
            if arg == "--":
                return
            if not re.match("--?[A-Za-z]", arg):
                continue
            if arg.partition("=")[0] not in parser._option_string_actions:
                value = "" if following.startswith("-") or "=" in arg else f" {following}"
                parser.error(f"unrecognized arguments: {arg}{value}")

    def _check_first(self, argument: str, subcommand: str | None) -> None:
        """Refuse an option before the subcommand that it belongs to."""
        if argument.startswith("-"):
            wanted = subcommand or f"one of {', '.join(self._subcommands())}"
            raise UserError(f"{self._command()} needs {wanted} first, then {quoted(argument)}.")

    def _command(self) -> str:
        return self.prog.removeprefix("python -m src ")

    def _subcommands(self) -> dict[str, ToolParser]:
        """Parsers of the subcommands by name; none if there are no subcommands."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError` with a short explanation of the message."""
        if choices := ", ".join(self._subcommands()):
            message = re.sub(r"(are required: \w+)$", rf"\1, one of {choices}", message)
        else:
            message = re.sub(r"(?<=are required: )\w+$", self._meaning, message)
        names = {action.dest for action in self._actions if not action.option_strings}
        raise UserError(_explain(message, self._command(), self.option_names(), names))

    def _meaning(self, name: re.Match[str]) -> str:
        """What to give for an argument without hyphens, whose help is a noun phrase."""
        action = next((action for action in self._actions if action.dest == name[0]), None)
        if action is None:
            return name[0]
        return " or ".join(action.choices or [f"{name[0].upper()}, {action.help}"])


def add_recipe_options(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Describe the options that bring a recipe in the help; the settings' parser reads them.

    Args:
        parser: Parser of a command that reads a recipe.
        purpose: What the command does with a run.
    """
    parser.add_argument_group(
        "recipe",
        "-c, --config FILE  a recipe; later ones override earlier ones\n"
        f"--name RUN         {purpose}\n"
        "--ckpt_path FILE   the same for the run of a checkpoint or for the folder of a run",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def _explain(message: str, command: str, options: Iterable[str], arguments: Iterable[str]) -> str:
    see = f"See python -m src {command} --help."
    if match := re.search(r"argument (.+?): invalid choice: '(.*)' \(choose from (.+)\)", message):
        choices = re.findall(r"[^', ]+", match[3])
        accepted = " or ".join([", ".join(choices[:-1]), choices[-1]][len(choices) == 1 :])
        name = f"{command} {_option(match[1])}"
        if command == "prepare" and Path(match[2]).exists():
            return f"prepare expects {accepted} first: prepare {choices[0]} {match[2]}."
        return f"{name}: expected {accepted}, got {match[2]!r}.{suggest(match[2], choices)}"
    if match := re.search(r"argument (.+?): invalid (\w+) value: '(.*)'", message):
        return f"{_option(match[1])}: expected {_KINDS.get(match[2], match[2])}, got {match[3]!r}."
    if match := re.search(r"argument (.+?): expected (?:one|at least one|\d+) arg", message):
        return needed_value(_option(match[1]), command.split()[0])
    if match := re.search(r"the following arguments are required: (.+)", message):
        return f"{command} needs {_joined(match[1])}. {see}"
    if match := re.search(r"one of the arguments (.+) is required", message):
        return f"{command} needs {' or '.join(match[1].split())}. {see}"
    if match := re.search(r"unrecognized arguments: (.+)", message):
        name = re.split(r"[ =]", match[1])[0]
        names = [option for option in options if len(option) > 1]
        hint = did_you_mean(close_options(name.lstrip("-"), names)) if name[:1] == "-" else ""
        if found := close_options(name, arguments):
            hint = f" Give {found[0].upper()} without an option: {command} {found[0].upper()}."
        return f"{command} does not accept {match[1]!r}.{hint} {see}"
    return f"{command}: {message}. {see}"


def _joined(required: str) -> str:
    """Required arguments, with an "and" before the last option: ``TARS and --out``."""
    first, separator, last = required.rpartition(", --")
    if not separator:
        return required
    named = (name if name.startswith("-") else name.upper() for name in first.split(", "))
    return f"{', '.join(named)} and --{last}"


def _option(text: str) -> str:
    """The longest spelling of an option such as ``-o/--output``."""
    return max(text.split("/"), key=len)
