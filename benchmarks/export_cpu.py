"""Compare the speed of ONNX Runtime and PyTorch with the compiled operator on the CPU.

``python benchmarks/export_cpu.py`` exports each network with random weights, compares the outputs,
times both alternately and writes ``results/export_cpu.{json,md}``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import onnxruntime
import torch
from torch import nn

from src import files
from src.export.compare import differences, runner
from src.export.files import trace, write_onnx
from src.export.graphs import graphs_of
from src.models.detection import MaskRCNN
from src.models.internimage.backbone import InternImageBackbone
from src.models.internimage.classifier import InternImage
from src.models.internimage.dcnv3 import DCNv3
from src.models.segmentation import Segmentor
from src.models.segmentation.fcn import FCNHead
from src.models.segmentation.upernet import UPerHead

RESULTS = Path(__file__).parent / "results"
NANO = {"channels": 32, "depths": (1, 1, 3, 1), "groups": (2, 4, 8, 16)}
NETWORKS = {
    "InternImage-T, 1000 classes": (InternImage, (224, 224)),
    "InternImage-nano, 1000 classes": (partial(InternImage, **NANO), (224, 224)),
    "UPerNet-nano, 150 classes": (
        partial(
            Segmentor,
            150,
            partial(InternImageBackbone, **NANO),
            partial(UPerHead, channels=64),
            partial(FCNHead, channels=32),
        ),
        (256, 256),
    ),
    "Mask R-CNN-nano, backbone": (
        partial(MaskRCNN, 80, partial(InternImageBackbone, **NANO), channels=64, fc_channels=256),
        (384, 512),
    ),
}


def with_random_offsets(network: nn.Module) -> nn.Module:
    """Randomise offsets, so that sampling is irregular as in a trained network."""
    for module in network.modules():
        if isinstance(module, DCNv3):
            nn.init.normal_(module.offset.weight, std=0.05)
            nn.init.normal_(module.mask.weight, std=0.05)
    return network.eval()


def measure(make, size: tuple[int, int], rounds: int, threads: int) -> dict[str, float]:
    torch.manual_seed(0)
    graph = graphs_of(with_random_offsets(make()))[0]
    inputs = {"image": torch.randn(1, 3, *size)}
    with tempfile.TemporaryDirectory() as folder:
        run = runner(write_onnx(graph, trace(graph), Path(folder)), threads)
        found = differences(graph, run, inputs)
        times: dict[str, list[float]] = {"PyTorch": [], "ONNX Runtime": []}
        for _ in range(rounds):
            for name, call in (("PyTorch", graph.module), ("ONNX Runtime", run)):
                start = time.perf_counter()
                with torch.inference_mode():
                    call(**inputs) if name == "PyTorch" else call(inputs)
                times[name].append(time.perf_counter() - start)
    medians = {name: 1e3 * statistics.median(values[1:]) for name, values in times.items()}
    return medians | {"difference": max(v for n, v in found.items() if n != "label_map")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=6, help="number of rounds, including one for warm-up"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = {
        name: measure(make, size, args.rounds, args.threads) | {"size": list(size)}
        for name, (make, size) in NETWORKS.items()
    }
    machine = {
        "processor": _processor(),
        "threads": args.threads,
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine, "rows": rows}
    files.write_text(RESULTS / "export_cpu.json", json.dumps(content, indent=1) + "\n")
    files.write_text(RESULTS / "export_cpu.md", table(machine, rows))
    print(table(machine, rows))


def table(machine: dict, rows: dict) -> str:
    lines = [
        "# ONNX Runtime against PyTorch on the CPU",
        "",
        "One image, median in milliseconds. PyTorch uses the compiled operator, ONNX Runtime "
        "GridSample. Random weights and offsets.",
        "",
        ", ".join(f"{name} {value}" for name, value in machine.items()),
        "",
        "| network | size | PyTorch | ONNX Runtime | ratio | largest difference |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        ratio = row["ONNX Runtime"] / row["PyTorch"]
        lines.append(
            f"| {name} | {row['size'][0]} x {row['size'][1]} | {row['PyTorch']:.1f} | "
            f"{row['ONNX Runtime']:.1f} | {ratio:.2f} | {row['difference']:.1e} |"
        )
    return "\n".join(lines) + "\n"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
