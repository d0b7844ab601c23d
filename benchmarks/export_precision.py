"""Accuracy of a classifier as ONNX files in float32, float16 and int8, against PyTorch.

``python benchmarks/export_precision.py --config RECIPE --data.root FOLDER --ckpt_path FILE``
exports the network of a recipe and classifies its validation images with PyTorch and with every
file. It prints a table: size of the file, accuracy, fraction of images with the class that PyTorch
predicts, and median time of one image with one thread. All settings of a recipe are accepted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from src.cli.commands.export import load  # noqa: E402
from src.export.compare_graphs import runner  # noqa: E402
from src.export.description import Description  # noqa: E402
from src.export.package import Form, write  # noqa: E402

PRECISIONS = ("float32", "float16", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of the recipe")
    parser.add_argument("--rounds", type=int, default=20, help="timed images (%(default)s)")
    args, recipe = parser.parse_known_args()
    torch.set_num_threads(1)
    loaded, data = load(recipe, args.ckpt_path)
    model = loaded.pretrained
    data.num_workers = 0
    data.setup("validate")
    with tempfile.TemporaryDirectory() as folder:
        description = Description(model.task, model.class_names, model.preprocessing)
        form = Form(preprocessing="outside", precisions=PRECISIONS)
        written = write(model.network, description, Path(folder), ["onnx"], form)
        sizes = [path.stat().st_size for path in written.paths]
        files = [runner(path, threads=1) for path in written.paths]
        rows = measure(model.network, files, data, args.rounds)
    print("| file | MB | top-1 | same class as PyTorch | ms per image |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, size, (right, same, milliseconds) in zip(
        ("PyTorch", *PRECISIONS), (None, *sizes), rows, strict=True
    ):
        megabytes = "" if size is None else f"{size / 1e6:.1f}"
        print(f"| {name} | {megabytes} | {right:.2%} | {same:.2%} | {milliseconds:.1f} |")
    print(f"{len(data.val_dataloader().dataset)} images")


@torch.inference_mode()
def measure(
    network: torch.nn.Module, files: list[Callable], data: object, rounds: int
) -> list[tuple[float, float, float]]:
    """Accuracy, agreement with PyTorch and time of PyTorch and of each file."""

    def classify(image: Tensor) -> Tensor:
        return network(image).softmax(dim=1)

    calls = [classify, *(lambda image, run=run: run({"image": image})[0] for run in files)]
    labels, found = [], [[] for _ in calls]
    for batch in data.val_dataloader():
        batch = data.normalise(batch)
        labels.append(batch["label"])
        for call, predicted in zip(calls, found, strict=True):
            predicted.append(call(batch["image"]).argmax(dim=1))
    expected, (first, *rest) = torch.cat(labels), [torch.cat(part) for part in found]
    image, times = batch["image"][:1], [[] for _ in calls]
    for _ in range(rounds + 1):
        for call, measured in zip(calls, times, strict=True):
            start = time.perf_counter()
            call(image)
            measured.append(1e3 * (time.perf_counter() - start))
    return [
        (
            float((predicted == expected).double().mean()),
            float((predicted == first).double().mean()),
            sorted(measured[1:])[rounds // 2],
        )
        for predicted, measured in zip([first, *rest], times, strict=True)
    ]


if __name__ == "__main__":
    main()
