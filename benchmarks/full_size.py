"""Load and run a full-size network on the CPU, and measure time and peak memory of each step.

Usage: ``python benchmarks/full_size.py RECIPE [--size 256] [--file weights.pth]``. First, a
separate process writes a checkpoint in the official format (half precision, official names). Its
values are a function of the parameter names, so that loading can be checked without published
weights. Then the network is built uninitialised, loaded with ``load_official``, compared value by
value, and run on a square image. This needs 4 bytes of memory and 2 bytes of disk space per
parameter. Writes ``results/full_size_<recipe>.json``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import sys
import time
import zlib
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentParser

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import src.cli.app  # noqa: F401  gives the parts of recipes their short names
from src import files
from src.data.datamodules.base import BaseDataModule
from src.models.detection import Detector
from src.models.weights import load_official
from src.models.weights.names import official_names
from src.tasks import BaseTask

PERIOD = 65_521


def on_meta(recipe):
    """The network of a recipe on the meta device."""
    config = yaml.safe_load(recipe.read_text())
    if config["data"]["class_path"] == "COCODataModule":
        config["data"]["init_args"]["class_names"] = "coco"  # where there is no dataset
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BaseTask, "model")
    parser.add_subclass_arguments(BaseDataModule, "data")
    parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
    parts = parser.parse_object({"model": config["model"], "data": config["data"]})
    with torch.device("meta"):
        parts = parser.instantiate_classes(parts)
        return parts.model.network_factory(num_classes=parts.data.num_classes)


def formula(name, shape):
    """Deterministic half-precision values of a tensor with the scale of an initialisation."""
    count = shape.numel()
    if len(shape) < 2:
        value = 1.0 if name.endswith("weight") else 0.0
        return torch.full(shape, value, dtype=torch.float16)
    base = (torch.arange(PERIOD) * 40_503 + zlib.crc32(name.encode())) % PERIOD
    base = ((2 * base / PERIOD - 1) * (3 * shape[0] / count) ** 0.5).half()
    return base.repeat(-(-count // PERIOD))[:count].view(shape)


def write_file(recipe, path):
    network = on_meta(Path(recipe))
    names = official_names(network)
    state = {names[k]: formula(names[k], v.shape) for k, v in network.state_dict().items()}
    torch.save({"meta": {}, "state_dict": state}, path)


def scores_of(network, image):
    """Class scores of a segmentor, or box scores of a detector."""
    if isinstance(network, Detector):
        return network(image, [image.shape[-2:]])[0].scores
    return network(image)["out"]


def peak_gib():
    """Peak resident memory, including the memory-mapped file."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def anonymous_gib():
    """Anonymous memory of this process."""
    status = Path("/proc/self/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))
    return round(int(kib) / 2**20, 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--file", type=Path, default=Path("runs/full_size.pth"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    args.file.parent.mkdir(parents=True, exist_ok=True)
    writer = multiprocessing.get_context("spawn").Process(
        target=write_file, args=(str(args.recipe), str(args.file))
    )
    writer.start()
    writer.join()
    if writer.exitcode:
        sys.exit("could not write the file")

    network = on_meta(args.recipe).to_empty(device="cpu")
    result = {
        "recipe": args.recipe.stem,
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "file_gib": round(args.file.stat().st_size / 2**30, 2),
    }
    start = time.perf_counter()
    report = load_official(network, args.file)
    result["load_seconds"] = round(time.perf_counter() - start, 1)
    result["load_anonymous_gib"], result["load_peak_gib"] = anonymous_gib(), peak_gib()
    if report.fresh or report.unused:
        sys.exit(f"some tensors were not loaded: {report}")
    names = official_names(network)
    for name, value in network.state_dict().items():
        if not torch.equal(value, formula(names[name], value.shape).to(value.dtype)):
            sys.exit(f"{name} was not loaded")

    network.eval()
    image = torch.randn(1, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        start = time.perf_counter()
        scores = scores_of(network, image)
        result["forward_seconds"] = round(time.perf_counter() - start, 1)
    if not scores.isfinite().all():
        sys.exit("the scores are not finite")
    result |= {"image": args.size, "scores": list(scores.shape), "peak_gib": peak_gib()}
    print(json.dumps(result, indent=1))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"full_size_{args.recipe.stem}.json"
    files.write_text(path, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
