"""``python -m src completion``: bash and zsh completion for ``internimage``.

``internimage`` is the console script for ``python -m src``, installed with the package.
"""

from __future__ import annotations

from collections.abc import Sequence

from src.cli.short_help import short_help
from src.cli.tool_parser import ToolParser

_SCRIPT = """\
{head}_internimage() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" options=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$word")); return
  fi
  case "$before" in
    -c|--config) COMPREPLY=($(compgen -f -X '!*.yaml' -- "$word") $(compgen -d -S / -- "$word"))
      return ;;
    --ckpt_path) COMPREPLY=($(compgen -W "last best" -- "$word") $(compgen -f -- "$word"))
      return ;;
  esac
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  case "$word" in
    -*) COMPREPLY=($(compgen -W "$options" -- "$word")) ;;
    *) COMPREPLY=($(compgen -f -- "$word")) ;;
  esac
}}
complete -o filenames -o nospace -F _internimage internimage
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the script.

    Args:
        argv: Arguments after ``completion``.

    Returns:
        0.
    """
    parser = ToolParser(
        prog="python -m src completion",
        description="Print a completion script. Usage: source <(internimage completion bash)",
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    print(script(parser.parse_args(argv).shell))
    return 0


def script(shell: str) -> str:
    """Completion script of ``bash`` or ``zsh``."""
    from src.cli import TOOLS, TRAINER_COMMANDS

    cases = "\n".join(
        f'    {name}) options="{" ".join(_options(name))}" ;;' for name in TRAINER_COMMANDS
    )
    head = _ZSH if shell == "zsh" else ""
    return _SCRIPT.format(head=head, commands=" ".join((*TRAINER_COMMANDS, *TOOLS)), cases=cases)


def _options(command: str) -> list[str]:
    """Options named in the short help."""
    words = short_help(command).split("\n\n")[2].split()
    return sorted({word.rstrip(",") for word in words if word.startswith("-")})
