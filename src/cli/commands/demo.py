"""``python -m src demo``: a web page on which an image is dropped and the results are drawn.

`src.cli.demo_server` serves it. PyTorch is imported once the file to open is known, so that help
and errors come at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from src.cli.demo_page import curl_command
from src.cli.suggestions import closest
from src.cli.tool_parser import ToolParser
from src.errors import UserError
from src.export.names import EXPORTED, RESULT_FILE
from src.file_names import quoted
from src.runs import is_run, runs_with_checkpoints
from src.stopping import Interrupted

_PORT = 8000
_LAST_PORT = 2**16 - 1
_RUNS = Path("runs")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command until Ctrl-C.

    Args:
        argv: Arguments after ``demo``.

    Returns:
        Exit code.

    Raises:
        UserError: If the port or the file cannot be used.
    """
    args = _parser().parse_args(argv)
    if not 0 <= args.port <= _LAST_PORT:
        raise UserError(
            f"--port takes a number from 0 (any free port) to {_LAST_PORT}, got {args.port}."
        )
    model = args.model or _exported(args.name)
    # Imported here, because it imports PyTorch, which takes seconds.
    from src.cli.demo_server import ExportedModel, make_server

    server = make_server(ExportedModel(model), args.port, args.score)
    print(f"Open http://127.0.0.1:{server.server_port} and drop an image. Ctrl-C ends it.")
    print(f"Or in a terminal: {curl_command(server.server_port)}")
    print(f"As JSON:          {curl_command(server.server_port, as_json=True)}")
    try:
        server.serve_forever()
    except (KeyboardInterrupt, Interrupted):
        return 0
    finally:
        server.server_close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(
        prog="python -m src demo",
        description="Try an exported network in the browser, or in another terminal: "
        f"{curl_command(_PORT)} (-D - shows the classes in the header X-Result), or, for classes,"
        f" scores and boxes as JSON: {curl_command(_PORT, as_json=True)}",
    )
    add = parser.add_argument
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", help="model.onnx of python -m src export")
    model.add_argument("--name", help=f"name of an exported run: {EXPORTED}/NAME/{RESULT_FILE}")
    add("--port", type=int, default=_PORT, help="port on this computer, 0 is any (%(default)s)")
    add("--score", type=float, default=0.3, help="minimum score of boxes (%(default)s)")
    return parser


def _exported(name: str) -> Path:
    path = EXPORTED / name / RESULT_FILE
    if not path.is_file():
        raise UserError(f"There is no {path}. {_advice(name)} Or give another file with --model.")
    return path


def _advice(name: str) -> str:
    """What to do about a name that no exported run has."""
    exported = sorted(other.parent.name for other in EXPORTED.glob(f"*/{RESULT_FILE}"))
    similar_run = closest(name, runs_with_checkpoints(_RUNS))
    if is_run(_RUNS / name):
        return f"Write it with python -m src export --name {quoted(name)}."
    if (similar := closest(name, exported)) is not None:
        return f"Did you mean {similar!r}?"
    if similar_run is not None:
        command = f"python -m src export --name {quoted(similar_run)}"
        return f"Did you mean the run {similar_run!r}? Export it with {command}."
    if exported:
        return f"Exported runs are {', '.join(exported[:10])}."
    return "No run is exported; write it with python -m src export --name RUN."
