"""Options of ``export``, checked before PyTorch is imported, because that takes seconds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from src.cli.early_checks import check_run
from src.cli.tool_parser import ToolParser
from src.errors import UserError
from src.export.names import DCN_FORMS, FORMATS

_FROM_ONNX = {
    "tensorrt": "TensorRT reads ONNX files: use --format onnx --preprocessing outside, and convert"
    " model.onnx with trtexec (docs/export.md)",
    "openvino": "OpenVINO reads ONNX files: use --format onnx --dcn gridsample (docs/export.md)",
}
"""How to come to formats that other programs make of ONNX files."""


def check_options(args: Sequence[str]) -> None:
    """Refuse wrong options, a folder of images that is missing, and a run that is missing.

    Args:
        args: Arguments after ``export``.

    Raises:
        UserError: If there is one.
    """
    known, _ = export_parser().parse_known_args(args)
    check_folder(known.check)
    check_run(args)


def check_folder(images: Path | None) -> None:
    """Refuse a folder of images for ``--check`` that does not exist.

    Raises:
        UserError: If it does not.
    """
    if images is not None and not images.exists():
        raise UserError(f"The folder of images for --check does not exist: {images}.")


def export_parser() -> argparse.ArgumentParser:
    """Parser of the options of ``export``; the others are settings of a recipe."""
    parser = ToolParser(
        prog="python -m src export",
        description="Export a trained network: --name RUN, or --ckpt_path FILE. Also accepts the "
        "settings of a recipe: --config FILE, --model.weights FILE_OR_NAME, --data.class_names ...",
    )
    add = parser.add_argument
    add(
        "--ckpt_path", help="checkpoint: a path, best or last; default: model.weights of the recipe"
    )
    add("--out", type=Path, help="output folder (exported/<name of the recipe>)")
    add(
        "--format",
        nargs="+",
        type=_format,
        choices=FORMATS,
        default=["onnx"],
        help="onnx; pt2: torch.export; aoti: compiled by AOTInductor; safetensors: weights, "
        "network and class names, for Pretrained.from_pretrained (%(default)s)",
    )
    add(
        "--dcn",
        choices=DCN_FORMS,
        default="deformconv",
        help="form of DCNv3 in ONNX files; deformconv: DeformConv (opset 20), for ONNX Runtime and "
        "TensorRT; gridsample: GridSample (opset 18), for OpenVINO; gather: basic operators (opset "
        "18), for everything else; native: the CPU kernels of this project, for ONNX Runtime with "
        "the library that is written beside the file, fastest (%(default)s)",
    )
    add(
        "--outputs",
        choices=("result", "raw"),
        default="result",
        help="of ONNX files; result: one file from image to result; raw: what the network computes,"
        " several files for Mask R-CNN (%(default)s)",
    )
    add(
        "--preprocessing",
        choices=("inside", "outside"),
        default="inside",
        help="inside: the ONNX file takes 8-bit images of any size; outside: prepared images "
        "(%(default)s)",
    )
    add(
        "--masks",
        choices=("box", "image"),
        default="box",
        help="masks of detections in ONNX files; box: 28 x 28 probabilities in each box; image: "
        "masks of the size of the image (%(default)s)",
    )
    add(
        "--precision",
        nargs="+",
        choices=("float32", "float16", "int8"),
        default=["float32"],
        help="further ONNX files; float16: matrix products and convolutions; int8: linear layers",
    )
    add("--check", type=Path, metavar="FOLDER", help="compare with PyTorch on these images")
    add("--push", metavar="USER/NAME", help="upload the safetensors folder to the hub")
    return parser


def _format(name: str) -> str:
    """A format; those made of ONNX files are refused with the way to them."""
    if name.lower() in _FROM_ONNX:
        raise argparse.ArgumentTypeError(_FROM_ONNX[name.lower()])
    return name
