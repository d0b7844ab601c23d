"""Argument parser of the tool commands, with one-line errors."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from src.cli.suggestions import suggest
from src.errors import UserError

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
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            of_name = self._subcommands()
            chosen = next((of_name[given] for given in args if given in of_name), self)
            chosen.error(f"unrecognized arguments: {' '.join(rest)}")
        return found

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
        known = (name for action in self._actions for name in action.option_strings)
        raise UserError(_explain(message, self.prog, (name.lstrip("-") for name in known)))


def _explain(message: str, prog: str, options: Iterable[str]) -> str:
    command = prog.removeprefix("python -m src ")
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
        return f"{_option(match[1])} needs a value."
    if match := re.search(r"the following arguments are required: (.+)", message):
        return f"{command} needs {match[1]}. {see}"
    if match := re.search(r"one of the arguments (.+) is required", message):
        return f"{command} needs {' or '.join(match[1].split())}. {see}"
    if match := re.search(r"unrecognized arguments: (.+)", message):
        name = re.split(r"[ =]", match[1])[0]
        hint = suggest(name.lstrip("-"), options, option=True) if name.startswith("--") else ""
        return f"{command} does not accept {match[1]!r}.{hint} {see}"
    return f"{command}: {message}. {see}"


def _option(text: str) -> str:
    """The longest spelling of an option such as ``-o/--output``."""
    return max(text.split("/"), key=len)
