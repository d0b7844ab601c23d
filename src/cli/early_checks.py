"""Checks of the run and the images of a command before PyTorch is imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from src.cli.arguments import option
from src.runs import KEYWORDS, find_checkpoint, is_run_or_checkpoint


def check_run(args: Sequence[str]) -> None:
    """Refuse a ``--name`` of which there is no run or no checkpoint, if no recipe is given.

    Args:
        args: Arguments after a command that needs a trained run.

    Raises:
        UserError: If there is none.
    """
    name, given = option(args, "--name"), option(args, "--ckpt_path")
    has_recipe = any(arg.partition("=")[0] in ("--config", "-c") for arg in args)
    if name is None or has_recipe or given not in (None, *KEYWORDS):
        return
    runs = Path(option(args, "--trainer.default_root_dir") or "runs")
    if not is_run_or_checkpoint(Path(name)):  # reported with what to use
        find_checkpoint(runs / name, given, runs)


def check_images(args: Sequence[str]) -> None:
    """Refuse images for ``predict`` that do not exist.

    Raises:
        UserError: If they do not.
    """
    if (source := option(args, "--data.predict_dir")) is not None:
        from src.data.formats.image_files import check_source

        check_source(source)
