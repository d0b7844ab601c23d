"""Compare ONNX Runtime with PyTorch and its compiled operator on the CPU, from image to result.

``python benchmarks/export_cpu.py --images FOLDER`` exports each network with random weights,
compares its results on the images of a folder (random images without one), times all in turn with
one and two threads, and writes ``results/export_cpu.{json,md}``. Every network has a process of its
own, and its row is written when it is measured: ``--resume`` continues an interrupted run.
``--files FOLDER`` keeps the exported files for further runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch import Tensor, nn
from torch._inductor import config as inductor

from src import files
from src.data.classes.palette import distinct_palette
from src.data.formats.image_files import find_images
from src.errors import UserError
from src.export.compare_graphs import runner
from src.export.compare_results import Example, ResultFile, compare_result
from src.export.description import Description
from src.export.differences import larger
from src.export.files import trace, write_compiled
from src.export.graphs import graphs_of
from src.export.package import Form, write
from src.models import (
    ARCHITECTURES,
    CBDINO,
    DINO,
    CascadeMaskRCNN,
    InternImage,
    InternImageBackbone,
    Mask2Former,
    Mask2FormerHead,
    MaskRCNN,
    SegFormerHead,
    Segmentor,
)
from src.models import CBInternImageBackbone as CompositeBackbone
from src.models.detection import Detector
from src.models.detection.dino.head import DINOHead
from src.models.detection.rcnn.box_head import BoxHead
from src.models.graphs import Result
from src.models.internimage.dcnv3 import DCNv3
from src.models.internimage.dcnv4 import DCNv4
from src.models.internimage.inference import prepare_for_inference
from src.models.layers.deformable_attention import MultiScaleDeformableAttention
from src.models.segmentation.fcn import FCNHead
from src.models.segmentation.upernet import UPerHead

RESULTS = Path(__file__).parent / "results"
FORMS = ("deformconv", "native")
COLUMNS = ("PyTorch", "prepared", *FORMS, "AOTInductor")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NANO = {"channels": 32, "depths": (1, 1, 3, 1), "groups": (2, 4, 8, 16)}
nano = partial(InternImageBackbone, **NANO)
coarse = partial(nano, out_indices=(1, 2, 3))
QUERIES = {"channels": 64, "hidden_channels": 256, "encoder_layers": 2, "decoder_layers": 2}
HEAD = partial(
    Mask2FormerHead,
    channels=64,
    num_queries=50,
    heads=8,
    encoder_layers=2,
    decoder_layers=3,
    encoder_hidden=128,
    decoder_hidden=128,
)
HEADS = {"channels": 64, "fc_channels": 256}
IMAGENET = {"image_size": 224}
ADE = {"image_scale": [2048, 512], "size_divisor": 32}
COCO = {"eval_scale": [640, 480]}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, int, dict]] = {
    "InternImage-T": (InternImage, "classification", 1000, IMAGENET),
    "InternImage-nano": (partial(InternImage, **NANO), "classification", 1000, IMAGENET),
    "FlashInternImage-T": (
        partial(InternImage, **ARCHITECTURES["flash_internimage_t"]),
        "classification",
        1000,
        IMAGENET,
    ),
    "UPerNet-T": (Segmentor, "segmentation", 150, ADE),
    "UPerNet-nano": (
        partial(
            Segmentor, 150, nano, partial(UPerHead, channels=64), partial(FCNHead, channels=32)
        ),
        "segmentation",
        150,
        ADE,
    ),
    "SegFormer-nano": (
        partial(Segmentor, 150, nano, partial(SegFormerHead, channels=64), None),
        "segmentation",
        150,
        ADE,
    ),
    "Mask2Former-nano": (partial(Mask2Former, 150, nano, HEAD), "segmentation", 150, ADE),
    "Mask R-CNN-T": (MaskRCNN, "detection", 80, COCO),
    "Mask R-CNN-nano": (partial(MaskRCNN, 80, nano, **HEADS), "detection", 80, COCO),
    "Cascade Mask R-CNN-nano": (
        partial(CascadeMaskRCNN, 80, nano, **HEADS),
        "detection",
        80,
        COCO,
    ),
    "DINO-nano": (partial(DINO, 80, coarse, **QUERIES), "detection", 80, COCO),
    "CB-DINO-nano": (
        partial(CBDINO, 80, partial(CompositeBackbone, coarse), **QUERIES),
        "detection",
        80,
        COCO,
    ),
}


def randomise(network: nn.Module) -> nn.Module:
    """Random offsets, so that sampling is irregular as in a trained network; varied results."""
    for module in network.modules():
        if isinstance(module, DCNv3):
            nn.init.normal_(module.offset.weight, std=0.05)
            nn.init.normal_(module.mask.weight, std=0.05)
        elif isinstance(module, DCNv4):
            nn.init.normal_(module.offset_mask.weight, std=0.05)
        elif isinstance(module, MultiScaleDeformableAttention):
            nn.init.normal_(module.sampling_offsets.weight, std=0.05)
            nn.init.normal_(module.attention_weights.weight, std=0.05)
        elif isinstance(module, BoxHead):
            # Scores that are varied and not all near 1, for any width.
            nn.init.normal_(module.fc_cls.weight, std=4 / module.fc_cls.in_features**0.5)
            nn.init.normal_(module.fc_reg.weight, std=0.05)
        elif isinstance(module, DINOHead):
            for branch in module.reg_branches:
                nn.init.normal_(branch[-1].weight, std=0.05)
    return network.eval()


def prepare(path: Path | None, number: int, settings: dict, divisor: int) -> Example:
    """An image of a file, or a random one, resized with Pillow and normalised."""
    if path is None:
        small = np.random.default_rng(number).integers(0, 256, (60, 80, 3), np.uint8)
        image = Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC)
    else:
        image = Image.open(path).convert("RGB")
    if "image_size" in settings:
        size = (settings["image_size"],) * 2
    else:
        scale = settings.get("image_scale") or settings["eval_scale"]
        factor = min(max(scale) / max(image.size), min(scale) / min(image.size))
        step = settings.get("size_divisor", 1)
        size = tuple(-(-int(side * factor + 0.5) // step) * step for side in image.size)
    pixels = np.asarray(image.resize(size)) / 255
    tensor = torch.from_numpy((pixels - MEAN) / STD).float().permute(2, 0, 1)[None]
    height, width = tensor.shape[2:]
    padded = nn.functional.pad(tensor, (0, -width % divisor, 0, -height % divisor))
    return Example(torch.zeros(height, width, 3, dtype=torch.uint8), padded, (height, width))


def prepared_copy(network: nn.Module) -> nn.Module | None:
    """Copy of a network for inference; ``None`` if nothing in it can be prepared."""
    try:
        return prepare_for_inference(network)
    except UserError:
        return None


@torch.inference_mode()
def predict(network: nn.Module, example: Example) -> Tensor | list:
    """What a user of PyTorch computes."""
    if isinstance(network, Detector):
        return network.detect(example.prepared, [example.size])
    output = network(example.prepared)
    if isinstance(output, dict):
        return output["out"].softmax(dim=1).max(dim=1)
    return output.softmax(dim=1)


def network_of(name: str) -> nn.Module:
    """A network of the table, the same in every process."""
    torch.manual_seed(0)
    return randomise(NETWORKS[name][0]())


def measure(
    name: str,
    paths: list[Path],
    rounds: int,
    compared: int,
    forms: list[str],
    threads_of_runs: list[int],
    kept: Path | None,
    package: Path | None,
) -> dict:
    """A row of the table; ``package`` is the network compiled by `compile_network`."""
    settings = NETWORKS[name][3]
    network = network_of(name)
    row: dict[str, Any] = {}
    result = graphs_of(network)[0].result
    assert result is not None
    divisor = getattr(result, "divisor", 1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if kept is None else kept / name
        results = {form: folder / form / "model.onnx" for form in forms}
        for form, path in results.items():
            if not path.exists():
                export(network, name, path.parent, form)
            examples = [
                prepare(paths[i] if paths else None, i, settings, divisor)
                for i in range(min(compared, len(paths)) if paths else compared)
            ]
            row[form] = {
                "megabytes": path.stat().st_size / 1e6,
                "differences": largest_differences(network, result, path, examples),
            }
        row |= {"size": list(examples[0].prepared.shape[2:]), "images": len(examples)}
        calls: dict[str, Callable] = {"PyTorch": partial(predict, network)}
        if (copy := prepared_copy(network)) is not None:
            calls["prepared"] = partial(predict, copy)
        if package is not None:
            run = runner(package)
            calls["AOTInductor"] = lambda example: run({"image": example.prepared})
        for threads in threads_of_runs:
            for form, path in results.items():
                calls[form] = ResultFile(path, inside=False, threads=threads)
            torch.set_num_threads(threads)
            row[str(threads)] = times(calls, examples[0], rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return row | {"peak_gigabytes": peak / 1e9}


def export(network: nn.Module, name: str, folder: Path, dcn: str) -> None:
    """Write the ONNX file of a network without preprocessing."""
    folder.mkdir(parents=True)
    _, task, classes, settings = NETWORKS[name]
    names, palette = [str(i) for i in range(classes)], distinct_palette(classes)
    colours = {"mean": MEAN, "std": STD, "palette": palette}
    description = Description(task, names, {**settings, **colours})
    has_masks = isinstance(network, MaskRCNN | CascadeMaskRCNN)
    masks = "image" if has_masks else "box"
    form = Form(dcn=dcn, preprocessing="outside", masks=masks)
    write(network, description, folder, ["onnx"], form)


def largest_differences(
    network: nn.Module, result: Result, path: Path, examples: list[Example]
) -> dict[str, float]:
    """Largest differences of a file from PyTorch over all images."""
    file = ResultFile(path, inside=False)
    worst: dict[str, float] = {}
    for example in examples:
        found = compare_result(network, result, example, file(example))
        for key, value in found.items():
            worst[key] = larger(worst.get(key, 0.0), value)
    worst.pop("prepared")
    return worst


def compile_network(name: str, folder: Path) -> Path | None:
    """Compile a network with AOTInductor; ``None`` if it has several graphs."""
    # Otherwise the number of threads is that of this process.
    inductor.cpp.dynamic_threads = True
    graphs = graphs_of(network_of(name))
    return None if len(graphs) > 1 else write_compiled(graphs[0], trace(graphs[0]), folder)


def in_process(seconds: float | None, function: Callable, *arguments: Any) -> Any:
    """Result of a function in a process of its own, whose memory is free afterwards.

    Raises:
        TimeoutError: After ``seconds``; compilers that it started are ended too.
        EOFError: If the function failed; its error is printed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise TimeoutError
        return receiver.recv()
    except BaseException:
        assert process.pid is not None
        with suppress(ProcessLookupError):  # if it has no group of its own yet
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        raise
    finally:
        process.join()


def _answer(sender: Any, function: Callable, arguments: tuple) -> None:
    os.setsid()  # a group of its own, so that all of it can be ended
    sender.send(function(*arguments))


def exit_on_sigterm() -> None:
    """Exit as after Ctrl-C if this process is terminated, so that its children are ended too."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def times(calls: dict[str, Callable], example: Example, rounds: int) -> dict[str, float]:
    """Median time of each function in milliseconds, in turn, without the first round."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call(example)
            found[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values[1:]) for name, values in found.items()}


def row_of(name: str, paths: list[Path], args: argparse.Namespace) -> dict:
    """Measure a network in processes of its own."""
    given = (name, paths, args.rounds, args.compared, args.dcn, args.threads, args.files)
    if not args.aoti:
        return in_process(None, measure, *given, None)
    with tempfile.TemporaryDirectory() as folder:
        try:
            package = in_process(60 * args.minutes, compile_network, name, Path(folder))
            state = "several graphs" if package is None else "compiled"
        except TimeoutError:
            package, state = None, f"> {args.minutes} min"
        return in_process(None, measure, *given, package) | {"aoti": state}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--images", type=Path, help="folder of images to compare results on")
    add("--compared", type=int, default=5, help="number of images to compare (%(default)s)")
    add("--rounds", type=int, default=5, help="timed rounds (%(default)s)")
    add("--aoti", action="store_true", help="time AOTInductor too (networks of one graph)")
    add("--minutes", type=int, default=10, help="longest time to compile (%(default)s)")
    add("--dcn", nargs="+", choices=FORMS, default=list(FORMS), help="files (%(default)s)")
    add(
        "--threads",
        nargs="+",
        type=int,
        default=[1, 2],
        help="of each run; others keep their times",
    )
    add("--files", type=Path, help="folder that keeps exported files, for further runs")
    add("--only", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS), help="networks")
    add("--out", type=Path, default=RESULTS, help="where results are written (%(default)s)")
    add("--resume", action="store_true", help="leave out networks that have a row")
    args = parser.parse_args()
    exit_on_sigterm()
    paths = [Path(name) for name in find_images(args.images)] if args.images else []
    target = args.out / "export_cpu.json"
    machine = {
        "processor": _processor(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    content = json.loads(target.read_text()) if target.exists() else {}
    rows = content["rows"] if content.get("machine") == machine else {}
    failed = []
    for name in args.only:
        if args.resume and ("aoti" if args.aoti else "size") in rows.get(name, {}):
            continue
        try:
            rows[name] = rows.get(name, {}) | row_of(name, paths, args)
        except EOFError:
            failed.append(name)
            continue
        ordered = {key: rows[key] for key in NETWORKS if key in rows}
        content = {"machine": machine, "rows": ordered}
        files.write_text(target, json.dumps(content, indent=1) + "\n")
        files.write_text(args.out / "export_cpu.md", table(machine, ordered))
        print(name, rows[name], flush=True)
    if failed:
        sys.exit(f"error: not measured: {', '.join(failed)}")


def table(machine: dict, rows: dict) -> str:
    heads = [f"{threads}: {name}" for threads in ("1", "2") for name in COLUMNS]
    lines = [
        "# ONNX Runtime against PyTorch on the CPU",
        "",
        "From a prepared image to the result (boxes with masks of the image, label maps, "
        "probabilities), one image, median in milliseconds with one and with two threads, all in "
        "turn; in brackets, the time divided by that of `PyTorch`. Random weights. Command: "
        "`python benchmarks/export_cpu.py --images FOLDER`; without it, images are random. Other "
        "programs running change the times: compare ratios only.",
        "",
        "- `PyTorch`: the network with the compiled operator, float32",
        "- `prepared`: its copy by `prepare_for_inference`",
        "- `deformconv`, `native`: ONNX Runtime with files of this `--dcn`",
        "- `AOTInductor`: raw outputs, without the last steps of a detector; it cannot run "
        "networks of several graphs",
        "",
        "Differences are the largest of all compared images: boxes in pixels, label maps and masks "
        "as fractions of pixels, `unmatched` as a fraction of detections. Memory is the peak of "
        "the process that exports, compares and times a network. Proposals of DINO whose "
        "scores are equal up to rounding may change places, so PyTorch takes those of the file: "
        "`proposals` is the fraction that is not its own choice, and `proposal_scores` the largest "
        "difference of their logits.",
        "",
        ", ".join(f"{name} {value}" for name, value in machine.items()),
        "",
        f"| network | size | {' | '.join(heads)} | GB of memory |",
        "| --- | --- |" + " ---: |" * (len(heads) + 1),
    ]
    for name, row in rows.items():
        cells = [name, "{} x {}".format(*row["size"])]
        cells += [_time(row, threads, column) for threads in ("1", "2") for column in COLUMNS]
        lines.append("| " + " | ".join([*cells, f"{row['peak_gigabytes']:.1f}"]) + " |")
    lines += [
        "",
        "| network | file | MB | images | differences |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for name, row in rows.items():
        for form in FORMS:
            if form in row:
                found = row[form]["differences"].items()
                listed = ", ".join(f"{key} {value:.1e}" for key, value in found)
                size = f"{row[form]['megabytes']:.0f}"
                lines.append(f"| {name} | {form} | {size} | {row['images']} | {listed} |")
    return "\n".join(lines) + "\n"


def _time(row: dict, threads: str, column: str) -> str:
    """A time, and its ratio to PyTorch."""
    found = row.get(threads, {}).get(column)
    if found is None:
        return row.get("aoti", "") if column == "AOTInductor" else ""
    ratio = "" if column == "PyTorch" else f" ({found / row[threads]['PyTorch']:.2f})"
    return f"{found:.1f}{ratio}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
