"""``python -m src export``: export a trained network to ONNX, torch.export or safetensors.

The network, the classes and the preprocessing come from a recipe, as for ``predict``; all settings
of a recipe are accepted. ``--check`` compares the exported files with PyTorch on real images.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from src import files
from src.callbacks.unreadable import with_reasons
from src.cli.checkpoints import resolve_checkpoint
from src.cli.export_options import check_folder, export_parser
from src.cli.run_settings import run_with_settings
from src.data.formats.image_files import LISTED_EXTENSIONS, first_images, left_out
from src.errors import UserError, counted, printable
from src.export.card import formats_without_script, note_check
from src.export.check import Checked, check_files
from src.export.description import Description
from src.export.files import WRITERS
from src.export.names import EXPORTED, FORMATS, RESULT_FILE
from src.export.package import Form, possible_names, write
from src.export.packages import require
from src.hub import Pretrained, load_checkpoint, preprocessing_of, task_of
from src.hub.folders import CONFIG_FILE, WEIGHT_FILE
from src.hub.runs import without_num_classes
from src.models.layers.low_rank import merge_low_rank
from src.stopping import Interrupted

_SHARED = (".py", ".ttf")
"""Scripts and the font, which may be of the user or of another format."""
_ONE_CPU = tuple(
    f"--trainer.{name}"
    for name in (
        "accelerator=cpu",
        "devices=1",
        "num_nodes=1",
        "strategy=auto",
        "precision=32-true",
        "sync_batchnorm=false",
    )
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments after ``export``.

    Returns:
        0; 1 if a check failed: it found differences that rounding does not explain, or a file does
        not run on an image. The files stay, and ``EXPORT.md`` says so.

    Raises:
        UserError: If an option is invalid, or an image to check cannot be read.
    """
    return run_with_settings(["export", *(sys.argv[1:] if argv is None else argv)], _run)


def _run(argv: list[str]) -> int:
    parser = export_parser()
    args, recipe = parser.parse_known_args(argv[1:])
    check_folder(args.check)
    if args.check and args.check.is_dir() and not first_images(args.check, 1):
        raise UserError(
            f"The folder for --check holds no images: {args.check}; expected files ending in"
            f" {LISTED_EXTENSIONS}."
        )
    if args.check and set(args.format) == {"safetensors"}:
        raise UserError("--check needs onnx, pt2 or aoti; add one of them to --format.")
    if args.check and "onnx" in args.format:
        require("ONNX files", "onnxruntime")
    _refuse_options_without_effect(args, parser)
    model, data = load(recipe, args.ckpt_path)
    out = Path(args.out or EXPORTED / model.name)
    _refuse_mixture(out, args.format)
    print(f"Export:  {model.name} to {out}")
    print(f"Weights: {model.source}", flush=True)
    print(f"Writing: {', '.join(args.format)} (seconds; minutes for large networks)", flush=True)
    form = Form(args.dcn, args.outputs, args.preprocessing, args.masks, args.precision)
    former = [path for name in args.format for path in _files_of(name, out)]
    written, checked = export(model.pretrained, out, args.format, args.check, data, form)
    deleted = [path.name for path in former if not path.exists()]
    if deleted:
        print(f"Deleted: {', '.join(deleted)} in {out} (of an earlier export)")
    for path in written:
        print(f"Wrote:   {path} ({files.readable_size(path.stat().st_size)})")
    if bare := formats_without_script(written):
        print(f"note: {_no_script(bare, written)}")
    is_unchecked = args.check is not None and checked.passed is None
    if args.push and checked.passed is not False and not is_unchecked:
        print(f"Hub:     {model.pretrained.push_to_hub(args.push)}")
    elif args.push:
        reason = "nothing was checked" if is_unchecked else "the check failed"
        print(f"Hub:     not uploaded, because {reason}")
    if checked.passed is not None:
        print(f"Check:   {printable(checked.verdict)}")
    if args.check and (others := left_out(args.check)):
        print(f"Left out: {printable(others)}")
    if args.check and data.unreadable:
        _tell_unreadable(data, checked.passed)
    return 1 if checked.passed is False else 0


def _no_script(bare: Sequence[str], written: Sequence[Path]) -> str:
    """Why the files of some formats have no script, and which file has one."""
    text = (
        f"there is no script for the files of {' and '.join(bare)}: none of them alone leads from"
        " an image to a result"
    )
    if any(path.name == RESULT_FILE for path in written):
        return f"{text}. {RESULT_FILE} does, with predict.py."
    is_raw = any(path.suffix == ".onnx" for path in written)
    change = "Leave out --outputs raw" if is_raw else "Use --format onnx"
    return f"{text}. {change} for one file that does, with a script."


def _tell_unreadable(data: Any, passed: bool | None) -> None:
    """Name the images that could not be read, as ``predict`` does.

    Raises:
        UserError: If nothing was checked, or the check of the others passed and unreadable images
            are not to be skipped. A failed check keeps its exit status.
    """
    paths = sorted(set(data.unreadable))
    count = counted(len(paths), "image")
    text = f"{count} could not be read and {'is' if len(paths) == 1 else 'are'} not checked"
    if passed is None:
        text = "Nothing was checked: no image could be read"
    elif data.broken_images == "error":
        text += ". Replace or remove these files, or use --data.broken_images skip"
    message = with_reasons(text, paths, data.max_pixels)
    if passed is None or (passed and data.broken_images == "error"):
        raise UserError(message)
    print(f"note: {printable(message)}")


def _refuse_options_without_effect(
    args: argparse.Namespace, parser: argparse.ArgumentParser
) -> None:
    names: tuple[str, ...]
    if "onnx" not in args.format:
        names, reason = ("dcn", "outputs", "preprocessing", "masks", "precision"), "without onnx"
        hint = "add onnx to --format"
    elif args.outputs == "raw":
        names, reason = ("preprocessing", "masks", "precision"), "with --outputs raw"
        hint = "use --outputs result"
    else:
        return
    for name in names:
        if getattr(args, name) != parser.get_default(name):
            raise UserError(f"--{name} has no effect {reason}; leave it out, or {hint}.")


def _refuse_mixture(out: Path, formats: Sequence[str]) -> None:
    """Refuse a folder with files in other formats, which may be of another network."""
    others = {
        name: [path for path in _files_of(name, out) if path.suffix not in _SHARED]
        for name in FORMATS
        if name not in formats
    }
    found = [path.name for paths in others.values() for path in paths]
    if found:
        together = [name for name in FORMATS if name in formats or others[name]]
        raise UserError(
            f"{out} has files of an earlier export in other formats ({', '.join(found)}), which may"
            f" be of other weights. Repeat the command with --format {' '.join(together)} to"
            f" replace all of them, or with --out {_free(out)} to keep them."
        )


def _free(out: Path) -> Path:
    """A folder beside another one that does not exist yet."""
    beside = (Path.cwd() / out).resolve() if out.name in ("", "..") else out
    names = (beside.with_name(f"{beside.name}_{number}") for number in itertools.count(2))
    return next(path for path in names if not path.exists())


def _files_of(name: str, folder: Path) -> list[Path]:
    """Files in a format that an export to this folder has written."""
    names = [WEIGHT_FILE] if name == "safetensors" else possible_names([name])
    return [folder / file for file in names if (folder / file).exists()]


class _Loaded(NamedTuple):
    pretrained: Pretrained
    name: str
    source: str


def load(recipe: Sequence[str], checkpoint: str | None = None) -> tuple[_Loaded, Any]:
    """Build the network of a recipe with its weights.

    Args:
        recipe: Arguments as for ``fit``.
        checkpoint: ``best``, ``last`` or a path; ``None`` uses ``model.weights`` of the recipe.

    Returns:
        The network with its classes, its name and the source of its weights, and the data module.

    Raises:
        UserError: If there are no weights, or they do not match the network.
    """
    from src.cli import build
    from src.tasks.class_names import compare_classes

    given = [*recipe, "--model.init_args.weights=null"] if checkpoint else list(recipe)
    cli = build([*given, *_ONE_CPU])
    if not cli.model.predicts:
        raise UserError(
            f"export is for networks that predict, which a run of {type(cli.model).__name__} does"
            " not train. Fine-tune its image tower first, with --model.weights set to the"
            " checkpoint (docs/pretraining.md)."
        )
    network = cli.model.training_network
    merge_low_rank(network)
    source = str(cli.model.weights)
    if checkpoint:
        path = resolve_checkpoint(checkpoint, cli.runs)
        now = list(cli.datamodule.class_names)
        compare_classes(
            load_checkpoint(network, path, now), now, f"The checkpoint {path}", is_fitting=False
        )
        source = str(path)
    elif cli.model.weights is None:
        raise UserError("export needs weights: set --ckpt_path best or --model.weights FILE.")
    elif cli.model.random_weights:
        raise UserError(
            f"{cli.model.weights} does not contain all weights of the network: "
            f"{cli.model.random_weights[0]} would be randomly initialised. Set data.class_names to "
            "the classes that the weights were trained with, or train first and export with "
            "--ckpt_path best."
        )
    settings = cli.config["model"]["init_args"]["network"]
    task = task_of(network)
    preprocessing = preprocessing_of(
        without_num_classes(cli.config["data"]["init_args"]),
        without_num_classes(cli.config["model"]["init_args"]),
    )
    if task == "segmentation":  # a dataset may have colours that its recipe does not name
        preprocessing["palette"] = [list(colour) for colour in cli.datamodule.palette]
    pretrained = Pretrained(
        network.eval(),
        without_num_classes(settings),
        list(cli.datamodule.class_names),
        task,
        preprocessing,
    )
    return _Loaded(pretrained, cli.run_name, source), cli.datamodule


def export(
    model: Pretrained,
    out: Path,
    formats: Sequence[str],
    check: Path | None = None,
    data: Any = None,
    form: Form | None = None,
) -> tuple[list[Path], Checked]:
    """Export a network and optionally check the files.

    Args:
        model: The network.
        out: Output folder; files of the same formats from an earlier export are deleted.
        formats: Any of `FORMATS`.
        check: Folder of images to compare the files with PyTorch on.
        data: Data module that preprocesses these images.
        form: Form of ONNX files; default is `Form`.

    Returns:
        The written files, and how the check ended. ``EXPORT.md`` says it as well, also after an
        interruption.
    """
    form = form or Form()
    names: list[str] = []
    written = None
    chosen = [name for name in WRITERS if name in formats]
    with files.whole_folder(out, last=["EXPORT.md"], parts=possible_names(chosen)) as folder:
        if "safetensors" in formats:
            model.save_pretrained(folder)
            names += [WEIGHT_FILE, CONFIG_FILE, "README.md"]
        if chosen:
            numbers = getattr(data, "own_numbers", None)
            description = Description(model.task, model.class_names, model.preprocessing, numbers)
            written = write(model.network, description, folder, chosen, form)
            names += [path.name for path in written.paths] + ["EXPORT.md"]
            if check:  # stays there if the check is interrupted
                note_check(folder / "EXPORT.md", "not finished")
    paths = [out / name for name in names]
    if check is None or written is None:
        return paths, Checked()
    try:
        checked = check_files(model.network, written.moved_to(out), check, data, form)
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(
            f"Interrupted. The files in {out} are written, but not checked. To check them, run"
            " the same command again."
        ) from None
    note_check(out / "EXPORT.md", checked.verdict)
    return paths, checked
