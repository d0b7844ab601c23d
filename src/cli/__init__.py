"""Command line: ``python -m src <command>``, also callable from notebooks and tests.

`main` runs a command and reports a `UserError` as a one-line message with exit code 2. `build`
creates the task, data module and trainer from the same arguments without running anything.
Lightning is imported only by the commands that need it.
"""

from __future__ import annotations

import linecache
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from src.cli.arguments import check_files, check_recipe, check_trainer_settings, checked
from src.cli.misspellings import check_spelling, check_values_given
from src.cli.mixed_recipes import note_of_tasks
from src.cli.process_failures import explanation, stop_with_parent
from src.cli.requirements import missing_requirement
from src.cli.short_help import short_help
from src.config_files import find_configs
from src.errors import UserError, printable
from src.files import disk_problem
from src.project import PACKAGE, version
from src.stopping import Interrupted, StopSignals, exit_code, is_first_rank

if TYPE_CHECKING:
    from src.cli.app import TrainingCLI

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
TOOLS = {
    "env": "src.cli.commands.env",
    "profile": "src.cli.commands.profile",
    "prepare": "src.cli.commands.prepare",
    "verify": "src.cli.commands.verify",
    "export": "src.cli.commands.export",
    "completion": "src.cli.commands.completion",
    "consolidate": "src.cli.commands.consolidate",
    "plan": "src.cli.commands.plan",
    "benchmark": "src.cli.commands.benchmark",
    "demo": "src.cli.commands.demo",
}
_TOOLS_WITH_LIGHTNING = ("export", "benchmark", "consolidate")
_OVERVIEW = """\
InternImage on PyTorch Lightning. Commands of python -m src:

  fit          train or fine-tune         fit --config configs/<recipe>.yaml
  validate     metrics on the val split   validate --name RUN   (or: --ckpt_path FILE)
  test         metrics on the test split  like validate
  predict      table and images           predict --name RUN --data.predict_dir FOLDER
  prepare      check and split your data  prepare from-folder photos   (or: prepare toy)
  verify       check a dataset            verify imagenet --root data/imagenet
  export       ONNX, torch.export, hub    export --name RUN --check FOLDER
  demo         try it in the browser      demo --name RUN   (after export)
  profile      parameters, MACs, memory   profile --model internimage_t
  plan         memory on several GPUs     plan --config X.yaml --gpus 8 --memory 80GB
  benchmark    images/s, latency, memory  benchmark --config X.yaml --trainer.precision bf16-mixed
  consolidate  merge a sharded checkpoint consolidate runs/<name>/version_0/checkpoints/last.ckpt
  env          versions and operators     env
Override any setting of a recipe with an option: --trainer.max_epochs 5 --data.batch_size 32.
<command> --help shows the most common settings; docs/configuration.md explains recipes."""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: Command and arguments; default is the command line.

    Returns:
        Exit code: 0 on success, 2 for invalid input, 130 after a signal (Ctrl-C, SIGTERM, SIGHUP),
        1 for an internal error, a dead rank or data loader worker, problems found by ``verify``,
        or a difference found by ``export --check``.
    """
    with StopSignals() as stops:
        return _main(list(sys.argv[1:] if args is None else args), stops)


def _main(given: list[str], stops: StopSignals) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(_OVERVIEW)
        return 0
    if given[0] in ("--version", "-V"):
        print(f"{PACKAGE} {version()}")
        return 0
    try:
        stops.release()
        check_values_given(given[0], given[1:])
        args = find_configs(given[1:])
        check_files(args)
        check_trainer_settings(args)
        return _command(given[0])(args)
    except (Interrupted, KeyboardInterrupt) as stop:
        return _interrupted(str(stop))
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_output_closed():
            return 1
        user_error = _as_user_error(error)
        if stops.received is not None and user_error is None:
            return _interrupted()  # an error caused by other processes that stopped first
        if (message := explanation(error)) is not None:
            print(f"error: {printable(message)}", file=sys.stderr)
            return 1
        if user_error is None or os.environ.get("INTERNIMAGE_TRACEBACK") == "1":
            traceback.print_exc()
        else:
            print(f"error: {printable(str(user_error))}", file=sys.stderr)
        return 1 if user_error is None else 2


def _is_output_closed() -> bool:
    """Whether the reader of the standard output has gone, as in ``... | head -1``."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    # Python flushes the output when it exits, and would report the same error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _interrupted(message: str = "") -> int:
    if is_first_rank():
        print(message or "Interrupted. Run the same command again.", file=sys.stderr)
    return exit_code()


def build(args: Sequence[str]) -> TrainingCLI:
    """Create the task, data module and trainer from command-line arguments, without running them.

    Args:
        args: For example ``["--config", "configs/x.yaml", "--data.batch_size", "8"]``.

    Returns:
        Object with ``model`` (the task, whose ``network`` is the plain module), ``datamodule`` and
        ``trainer``; ``trainer.fit(model, datamodule)`` trains.

    Raises:
        UserError: If a setting is invalid.
    """
    from src.cli.app import TrainingCLI

    cli = TrainingCLI.create(list(args), run=False)
    cli.model.configure_model()
    return cli


def _command(name: str) -> Callable[[list[str]], int]:
    if name in TRAINER_COMMANDS:
        return lambda args: _train([name, *args])
    if name in TOOLS:
        return lambda args: _run_tool(name, args)
    from src.cli.other_names import OTHER_COMMANDS
    from src.cli.suggestions import closest

    if name in OTHER_COMMANDS:
        raise UserError(f"There is no command {name!r}; use {OTHER_COMMANDS[name]!r}.")
    known = [*TRAINER_COMMANDS, *TOOLS]
    found = closest(name, [*known, *OTHER_COMMANDS, "--version"])
    hint = "" if found is None else f" Did you mean {OTHER_COMMANDS.get(found, found)!r}?"
    raise UserError(f"Unknown command {name!r}; expected one of {', '.join(known)}.{hint}")


def _run_tool(name: str, args: list[str]) -> int:
    check_spelling(name, args)
    check_recipe(name, args)
    if name == "export" and not {"-h", "--help"} & set(args):
        from src.cli.export_options import check_options

        check_options(args)
    if name in _TOOLS_WITH_LIGHTNING and not {"-h", "--help"} & set(args):
        _say_that_imports_take_time(name)
    run: Callable[[list[str]], int | None] = import_module(TOOLS[name]).main
    return run(args) or 0


def _train(args: list[str]) -> int:
    if {"-h", "--help"} & set(args):
        print(short_help(args[0]))
        return 0
    args = ["--help" if arg == "--help_all" else arg for arg in args]
    check_spelling(args[0], args[1:])  # all before the imports, of which Lightning takes seconds
    args = checked(args, after=1)
    check_recipe(args[0], args[1:])
    if args[0] != "fit":
        from src.cli.early_checks import check_images, check_run

        check_run(args[1:])
        if args[0] == "predict" and "--print_config" not in args:
            check_images(args[1:])
    if (note := note_of_tasks(args)) is not None and is_first_rank():
        print(f"note: {printable(note)}", file=sys.stderr, flush=True)
    _say_that_imports_take_time(args[0])
    from src.cli.run_settings import run_with_settings

    return run_with_settings(args, _run_trainer)


def _run_trainer(args: list[str]) -> int:
    from src.cli.app import TrainingCLI

    stop_with_parent()
    try:
        TrainingCLI.create(args, run=True)
    except SystemExit as stop:  # --help and --print_config
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _say_that_imports_take_time(command: str) -> None:
    is_imported = "lightning" in sys.modules
    if not is_imported and find_spec("lightning") is not None and is_first_rank():
        print(f"{command}: loading PyTorch and Lightning ...", file=sys.stderr, flush=True)


def _as_user_error(error: BaseException) -> BaseException | None:
    """The error about invalid input, possibly wrapped by another package, or ``None``.

    This is any `UserError`, and also a `ValueError` or a missing operator raised by an explicit
    ``raise`` statement of this project, so that lower layers do not have to use `UserError`.
    A required package that is not installed counts as invalid input too.
    """
    if (missing := missing_requirement(error)) is not None:
        return UserError(missing)
    if isinstance(error, UserError) or _is_raised_here(error):
        return error
    if (problem := disk_problem(error)) is not None:
        return UserError(problem)
    return None if error.__cause__ is None else _as_user_error(error.__cause__)


def _is_raised_here(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not isinstance(error, (ValueError, *_not_built_error())):
        return False
    source = Path(__file__).resolve().parents[1]
    line = linecache.getline(frames[-1].filename, frames[-1].lineno or 0).strip()
    return Path(frames[-1].filename).is_relative_to(source) and line.startswith("raise ")


def _not_built_error() -> tuple[type[Exception], ...]:
    """The error of a missing operator, if the operators are imported."""
    ops = sys.modules.get("src.ops")
    return () if ops is None else (ops.OpNotBuiltError,)
