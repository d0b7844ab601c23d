"""Check exported files: run them on images, and compare them with PyTorch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

from src.decoding import decode
from src.errors import counted
from src.export.compare_graphs import compare_graph, runner
from src.export.compare_results import Example, ResultFile, compare_result
from src.export.differences import Differences
from src.export.package import Form, Written
from src.export.session import DoesNotRunError

_SECONDS = 30.0  # between two lines of the progress


class Checked(NamedTuple):
    """How a check ended.

    Attributes:
        passed: Whether the files passed; ``None`` if there was no check, or no image is readable.
        verdict: The same in words.
    """

    passed: bool | None = None
    verdict: str = "not done"


def check_files(
    network: nn.Module, written: Written, images: Path, data: Any, form: Form
) -> Checked:
    """Run files on images, and print the largest differences from PyTorch.

    Args:
        network: The network in evaluation mode.
        written: The files.
        images: An image, or a folder of images.
        data: Data module that prepares them as the recipe does.
        form: Form of the ONNX files.

    Returns:
        Failed if an output differs by more than rounding explains, or a file does not run on an
        image.
    """
    try:
        compared = _compare(network, written, images, data, form)
    except DoesNotRunError as error:
        return Checked(False, f"FAILED: {error}")
    if compared is None:
        return Checked(None, "not done, because no image could be read")
    count, found = compared
    if found.passed:
        return Checked(True, f"passed, on {counted(count, 'image')}")
    return Checked(False, f"FAILED: above the limit are {', '.join(found.above())}")


def _compare(
    network: nn.Module, written: Written, images: Path, data: Any, form: Form
) -> tuple[int, Differences] | None:
    """Number of compared images, and the differences; ``None`` if no image is readable."""
    data.predict_dir, data.num_workers = str(images), 0
    data.setup("predict")
    loader = data.predict_dataloader()
    print(f"Checking {counted(len(loader.dataset), 'image')} from {images}", flush=True)
    progress = _Progress(len(loader.dataset))
    graphs = [(graph, path, runner(path)) for graph, path in written.graphs]
    results = [(path, ResultFile(path, form.inside)) for path in written.results]
    found = Differences()
    count = 0
    for loaded in loader:
        if "is_padding" in loaded:  # none of its images could be read
            continue
        batch = data.normalise(loaded)
        count += len(batch["path"])
        for inputs in _inputs(network, batch) if graphs else ():
            for graph, path, run in graphs:
                graph_inputs = {name: inputs[name] for name in graph.inputs if name in inputs}
                if len(graph_inputs) == len(graph.inputs):
                    found.add(path, compare_graph(graph, run, graph_inputs), graph.integer_outputs)
        if written.result is None or not results:
            progress.show(count)
            continue
        divisor = getattr(written.result, "divisor", 1)
        before = count - len(batch["path"])
        for done, example in enumerate(_examples(batch, loader, data.max_pixels, divisor), before):
            progress.show(done)
            for path, file in results:
                found.add(path, compare_result(network, written.result, example, file(example)))
    if not count:
        return None
    print(f"Largest difference from PyTorch over {counted(count, 'image')}:")
    print("\n".join([found.table(), *found.legend()]))
    return count, found


class _Progress:
    """Progress of a long check.

    Args:
        total: Number of images.
    """

    def __init__(self, total: int) -> None:
        self.total, self.shown = total, time.monotonic()

    def show(self, done: int) -> None:
        """Print the number of checked images if the last line is old."""
        now = time.monotonic()
        if 0 < done < self.total and now - self.shown >= _SECONDS:
            print(f"Checked {done} of {self.total} images", flush=True)
            self.shown = now


def _examples(batch: Any, loader: Any, max_pixels: int, divisor: int) -> Iterator[Example]:
    """Every image of a batch, as its file and as the recipe prepares it, padded to ``divisor``."""
    for i, path in enumerate(batch["path"]):
        image = batch["views"][i][0] if "views" in batch else batch["image"][i]
        size = batch["size"][i] if "original_size" in batch else image.shape[1:]
        height, width = int(size[0]), int(size[1])
        padding = (0, -width % divisor, 0, -height % divisor)
        padded = functional.pad(image[:, :height, :width], padding)[None]
        pixels = numpy.array(decode(path, upright=loader.dataset.upright, max_pixels=max_pixels))
        yield Example(torch.from_numpy(pixels), padded, (height, width))


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
