"""``python -m src export``: export a trained network to ONNX, torch.export or safetensors.

The network, the classes and the preprocessing come from a recipe, as for ``predict``; all settings
of a recipe are accepted. ``--check`` compares the exported files with PyTorch on real images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src import files
from src.cli.checkpoints import resolve_checkpoint, with_settings_of_run
from src.errors import UserError
from src.export.card import card
from src.export.compare import TOLERANCE, differences, runner
from src.export.files import OPSETS, WRITERS, trace, write_onnx
from src.export.graphs import Graph, graphs_of
from src.hub import Pretrained, load_checkpoint, preprocessing_of, task_of
from src.models.layers.low_rank import merge_low_rank

FORMATS = (*WRITERS, "safetensors")
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
        0; 1 if a check found a difference above 1e-4.
    """
    argv = with_settings_of_run(["export", *(sys.argv[1:] if argv is None else argv)])[1:]
    args, recipe = _parser().parse_known_args(argv)
    if not any(part.startswith(("--config", "-c")) for part in recipe):
        raise UserError(
            "export needs --name RUN, --ckpt_path FILE, or --config FILE, the recipe that the"
            " network was trained with."
        )
    if args.check and not args.check.exists():
        raise UserError(f"The folder of images for --check does not exist: {args.check}.")
    if args.check and set(args.format) == {"safetensors"}:
        raise UserError("--check needs onnx, pt2 or aoti; add one of them to --format.")
    model, data = load(recipe, args.ckpt_path)
    out = Path(args.out or Path("exported") / model.name)
    written, worst = export(model.pretrained, out, args.format, args.check, data, args.dcn)
    for path in written:
        print(f"Wrote:   {path} ({path.stat().st_size / 1e6:.1f} MB)")
    if args.push:
        print(f"Hub:     {model.pretrained.push_to_hub(args.push)}")
    if worst is not None:
        passed = worst <= TOLERANCE
        print(f"Check:   largest difference {worst:.1e} ({'within' if passed else 'ABOVE'} 1e-4)")
        return 0 if passed else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m src export",
        description="Export a trained network: --name RUN, or --ckpt_path FILE. Also accepts the "
        "settings of a recipe: --config FILE, --model.weights FILE_OR_NAME, --data.class_names ...",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--ckpt_path", help="checkpoint: a path, best or last; default: model.weights of the recipe"
    )
    add("--out", type=Path, help="output folder (exported/<name of the recipe>)")
    add(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=["onnx"],
        help="onnx; pt2: torch.export; aoti: compiled by AOTInductor; safetensors: weights, "
        "network and class names, for Pretrained.from_pretrained (%(default)s)",
    )
    add(
        "--dcn",
        choices=tuple(OPSETS),
        default="deformconv",
        help="form of DCNv3 in ONNX files; deformconv: DeformConv (opset 20), for ONNX Runtime and "
        "TensorRT; gridsample: GridSample (opset 18), for OpenVINO; gather: basic operators (opset "
        "18), for everything else (%(default)s)",
    )
    add("--check", type=Path, metavar="FOLDER", help="compare with PyTorch on these images")
    add("--push", metavar="USER/NAME", help="upload the safetensors folder to the hub")
    return parser


class _Loaded:
    def __init__(self, pretrained: Pretrained, name: str) -> None:
        self.pretrained, self.name = pretrained, name


def load(recipe: Sequence[str], checkpoint: str | None = None) -> tuple[_Loaded, Any]:
    """Build the network of a recipe with its weights.

    Args:
        recipe: Arguments as for ``fit``.
        checkpoint: ``best``, ``last`` or a path; ``None`` uses ``model.weights`` of the recipe.

    Returns:
        The network with its classes and its name, and the data module.

    Raises:
        UserError: If there are no weights, or they do not match the network.
    """
    from src.cli import build

    given = [*recipe, "--model.init_args.weights=null"] if checkpoint else list(recipe)
    cli = build([*given, *_ONE_CPU])
    network = cli.model.training_network
    merge_low_rank(network)
    if checkpoint:
        load_checkpoint(network, resolve_checkpoint(checkpoint, cli.runs))
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
    pretrained = Pretrained(
        network.eval(),
        _as_dict(settings),
        list(cli.datamodule.class_names),
        task_of(network),
        preprocessing_of(
            _as_dict(cli.config["data"]["init_args"]), _as_dict(cli.config["model"]["init_args"])
        ),
    )
    return _Loaded(pretrained, cli.run_name), cli.datamodule


def export(
    model: Pretrained,
    out: Path,
    formats: Sequence[str],
    check: Path | None = None,
    data: Any = None,
    dcn: str = "deformconv",
) -> tuple[list[Path], float | None]:
    """Export a network and optionally check the files.

    Args:
        model: The network.
        out: Output folder.
        formats: Any of `FORMATS`.
        check: Folder of images to compare the files with PyTorch on.
        data: Data module that preprocesses these images.
        dcn: Form of DCNv3 in ONNX files, one of `OPSETS`.

    Returns:
        The written files, and the largest difference if ``check`` was given.
    """
    names: list[str] = []
    pairs: list[tuple[Graph, Path]] = []
    with files.whole_folder(out, last=["EXPORT.md"]) as folder:
        if "safetensors" in formats:
            model.save_pretrained(folder)
            names += ["model.safetensors", "config.json"]
        written = [name for name in WRITERS if name in formats]
        if written:
            pairs = _write_graphs(model, folder, written, dcn)
    pairs = [(graph, out / path.name) for graph, path in pairs]
    names += [path.name for _, path in pairs] + (["EXPORT.md"] if pairs else [])
    worst = _check(model.network, pairs, check, data) if check and pairs else None
    return [out / name for name in names], worst


def _write_graphs(
    model: Pretrained, folder: Path, formats: Sequence[str], dcn: str
) -> list[tuple[Graph, Path]]:
    """Write every graph in every format, and ``EXPORT.md``."""
    graphs = graphs_of(model.network)
    pairs: list[tuple[Graph, Path]] = []
    for graph in graphs:
        program = trace(graph)
        for name in formats:
            writer = partial(write_onnx, dcn=dcn) if name == "onnx" else WRITERS[name]
            pairs.append((graph, writer(graph, program, folder)))
    paths = [path for _, path in pairs]
    text = card(graphs, paths, model.class_names, model.preprocessing, model.task)
    files.write_text(folder / "EXPORT.md", text)
    return pairs


def _check(
    network: nn.Module, pairs: Sequence[tuple[Graph, Path]], images: Path, data: Any
) -> float:
    data.predict_dir, data.num_workers = str(images), 0
    data.setup("predict")
    runners = [(graph, path, runner(path)) for graph, path in pairs]
    worst: dict[tuple[str, str], float] = {}
    shares: dict[tuple[str, str], str] = {}  # of outputs that do not fail the check
    count = 0
    for loaded in data.predict_dataloader():
        batch = data.normalise(loaded)
        count += len(batch["path"])
        for inputs in _inputs(network, batch):
            for graph, path, run in runners:
                graph_inputs = {name: inputs[name] for name in graph.inputs if name in inputs}
                if len(graph_inputs) < len(graph.inputs):
                    continue
                for output, value in differences(graph, run, graph_inputs).items():
                    key = (path.name, output)
                    worst[key] = max(worst.get(key, 0.0), value)
                    if output in graph.integer_outputs:
                        shares[key] = f" of the {graph.integer_outputs[output]}"
    print(f"Largest difference from PyTorch over {count} images:")
    for key, value in worst.items():
        print(f"  {key[0]:<18} {key[1]:<15} {value:.1e}{shares.get(key, '')}")
    return max(value for key, value in worst.items() if key not in shares)


@torch.no_grad()
def _inputs(network: nn.Module, batch: Any) -> Iterator[dict[str, Tensor]]:
    """Inputs of the graphs by name, for a batch of preprocessed images."""
    if "views" in batch:
        for views in batch["views"]:
            yield {"image": views[0][None]}
    elif (export_inputs := getattr(network, "export_inputs", None)) is not None:
        yield from export_inputs(batch["image"], batch["size"])
    else:
        yield {"image": batch["image"]}


def _as_dict(value: Any) -> Any:
    """A configuration as plain dictionaries and lists, without values set by the program."""
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    if isinstance(value, dict):
        return {key: _as_dict(item) for key, item in value.items() if key != "num_classes"}
    return [_as_dict(item) for item in value] if isinstance(value, (list, tuple)) else value
