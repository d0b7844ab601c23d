"""Throughput of InternImage on the CPU with the compiled operator and with grid_sample.

Usage: ``python benchmarks/model_cpu.py [--model internimage_t --size 224]``. Both networks have the
same weights and run alternately; the minimum time is reported, because other programs can only slow
down a run. Logits are compared before timing. Writes ``results/model_cpu.{json,md}``.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from unittest import mock

import timm
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import src.models  # noqa: F401  registers the networks
from src import files
from src.ops import backends, dcnv3, dcnv3_grid_sample

OPERATORS = {"grid_sample": dcnv3_grid_sample, "compiled": dcnv3}


def forward(network, images, operator):
    with (
        mock.patch("src.models.internimage.dcnv3.dcnv3", OPERATORS[operator]),
        torch.inference_mode(),
    ):
        start = time.perf_counter()
        logits = network(images)
        return time.perf_counter() - start, logits


def measure(network, images, turns):
    first = {name: forward(network, images, name)[1] for name in OPERATORS}
    torch.testing.assert_close(first["compiled"], first["grid_sample"], rtol=1e-3, atol=1e-3)
    best = dict.fromkeys(OPERATORS, float("inf"))
    for _ in range(turns):
        for name in OPERATORS:
            best[name] = min(best[name], forward(network, images, name)[0])
    return {name: len(images) / seconds for name, seconds in best.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="internimage_t")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.manual_seed(0)
    network = timm.create_model(args.model).eval()
    for name, parameter in network.named_parameters():
        if ".offset." in name:  # offsets of about one pixel, as after training
            torch.nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.5)
    rows = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for batch in (1, 4):
            images = torch.randn(batch, 3, args.size, args.size)
            speed = measure(network, images, args.turns)
            rows.append({"threads": threads, "batch": batch, **speed})
            print(rows[-1], flush=True)
    about = {
        "command": f"python benchmarks/model_cpu.py --model {args.model} --size {args.size}",
        "machine": f"{platform.processor() or platform.machine()}, {backends()['cpu']}",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    files.write_text(
        args.out / "model_cpu.json", json.dumps(about | {"rows": rows}, indent=2) + "\n"
    )
    table = ["| threads | batch | grid_sample images/s | compiled images/s | ratio |"]
    table += ["| --- | --- | --- | --- | --- |"]
    for row in rows:
        baseline, compiled = row["grid_sample"], row["compiled"]
        table.append(
            f"| {row['threads']} | {row['batch']} | {baseline:.2f} | {compiled:.2f} "
            f"| {compiled / baseline:.2f}x |"
        )
    head = [f"# {args.model} at {args.size}, forward, float32, CPU", ""]
    head += [f"- {key}: {value}" for key, value in about.items()] + [""]
    files.write_text(args.out / "model_cpu.md", "\n".join([*head, *table]) + "\n")


if __name__ == "__main__":
    main()
