"""Images per second and peak memory of whole networks, in training and in inference.

The same network, weights and images with our operator, with the plain path, and, where the package
`DCNv3` can be imported, with the official operator. Ours and plain run in bfloat16 autocast, the
official operator, which has no bfloat16, in float16. Logits are compared with those of the float32
reference before anything is timed. A training step is forward, cross entropy, backward and a fused
AdamW step. Compiled networks are compiled as with `--model.compile true`. Times are medians of CUDA
events.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import src.models  # noqa: F401  registers the networks
from benchmarks.gpu import peers
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.sections import parser
from benchmarks.gpu.timing import milliseconds
from src.models import InternImage
from src.models.layers.compilation import Compilation, compile_parts
from src.ops import dcnv3, dcnv3_grid_sample, dcnv3_reference

OPERATOR = "src.models.internimage.dcnv3.dcnv3"
TOLERANCE = 0.05  # of the largest logit
COUNTED_KERNELS = 20
TINY = {"channels": 16, "depths": (1, 1, 1, 1), "groups": (1, 2, 4, 8)}
TINY |= {"num_classes": 10, "drop_path_rate": 0.0}


@dataclass(frozen=True)
class Case:
    """One network under one operator."""

    model: str
    batch: int
    operator: str = "ours"
    compiles: bool = False
    checkpointing: bool = False
    graphs: bool = False
    """Replay one CUDA graph of the forward pass; inference only."""
    size: int = 224

    def __str__(self) -> str:
        flags = [f for f in ("compiles", "checkpointing", "graphs") if getattr(self, f)]
        return ", ".join([f"{self.model} N={self.batch}", self.operator, *flags])


T, B, H = "internimage_t", "internimage_b", "internimage_h"
CASES = {
    "eager": [
        Case(T, 128),
        Case(T, 128, "official"),
        Case(T, 1),
        Case(T, 1, graphs=True),
        Case(T, 128, "plain"),
    ],
    "compiled": [
        Case(T, 128, compiles=True),
        Case(T, 1, compiles=True, graphs=True),
    ],
    "large": [
        Case(B, 64),
        Case(H, 16, checkpointing=True),
        Case(H, 16),
        Case(B, 64, compiles=True),
    ],
}
TINY_CASES = {
    "eager": [Case("tiny", 2, size=32), Case("tiny", 2, "plain", size=32)],
    "compiled": [Case("tiny", 2, compiles=True, size=32)],
    "large": [Case("tiny", 2, checkpointing=True, size=32)],
}


def official_dcnv3(x: Tensor, offset: Tensor, logits: Tensor, *, groups: int, **_: object):
    """The official operator with the arguments of ours."""
    return peers.official(x, offset.to(x.dtype), logits.to(x.dtype), groups)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "ours": dcnv3,
    "plain": dcnv3_grid_sample,
    "official": official_dcnv3,
}


def make_network(case: Case, device: str) -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        network = InternImage(**TINY) if case.model == "tiny" else timm.create_model(case.model)
    network.to(device)
    for key, parameter in network.named_parameters():
        if ".offset." in key:  # offsets of about a pixel, as after training
            torch.nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.5)
    if case.checkpointing:
        network.set_grad_checkpointing(True)
    return network


class Run:
    """A network with everything that a training step needs."""

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.device = case, device
        self.dtype = torch.float16 if case.operator == "official" else torch.bfloat16
        self.images = torch.randn(case.batch, 3, case.size, case.size, device=device)
        self.network = make_network(case, device)
        self.labels = torch.arange(case.batch, device=device) % 10
        is_gpu = device == "cuda"
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-5, fused=is_gpu)
        self.scaler = torch.amp.GradScaler(device, enabled=self.dtype == torch.float16)

    def forward(self) -> Tensor:
        """Logits of all images."""
        # A graph must not keep casts of weights from outside of it.
        autocast = torch.autocast(self.device, self.dtype, cache_enabled=not self.case.graphs)
        with torch.no_grad(), autocast:
            return self.network(self.images)

    def train(self) -> None:
        """One step."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, self.dtype):
            loss = F.cross_entropy(self.network(self.images), self.labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def error(self) -> float:
        """Of the logits of two images, relative to the largest one of the float32 reference."""
        images = self.images[:2]
        with torch.no_grad():
            with mock.patch(OPERATOR, dcnv3_reference):
                want = self.network(images)
            with torch.autocast(self.device, self.dtype):
                got = self.network(images)
        return ((got - want).abs().max() / want.abs().max()).item()

    def graph(self) -> Callable[[], object]:
        """The forward pass as a CUDA graph."""
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.forward()
        return graph.replay


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of one case, peak memory of training, error of the logits."""
    with mock.patch(OPERATOR, OPERATORS[case.operator]):
        run = Run(case, args.device)
        run.network.eval()
        row: dict[str, Any] = {"error": run.error()}
        if not row["error"] <= TOLERANCE:
            return row | {"note": "wrong, not timed"}
        if case.compiles:
            compile_parts(run.network, Compilation())
        row["first forward s"] = _first(run.forward, args.device)
        call = run.graph() if case.graphs else run.forward
        time_ms = milliseconds({"": call}, args.seconds, args.device)[""]
        row |= {"inference images/s": case.batch * 1e3 / time_ms, "inference ms": time_ms}
        if case.graphs:
            return row
        run.network.train()
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        row["first step s"] = _first(run.train, args.device)
        time_ms = milliseconds({"": run.train}, args.seconds, args.device)[""]
        row |= {"training images/s": case.batch * 1e3 / time_ms, "training ms": time_ms}
        if args.device == "cuda":
            row["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
            row["kernels"] = kernels(run.train)
        return row


def _first(call: Callable[[], object], device: str) -> float:
    """Seconds of the first call, compilation included."""
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def kernels(step: Callable[[], object]) -> dict[str, Any]:
    """Milliseconds and number of launches of the kernels that take most of a step."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        torch.cuda.synchronize()
    found = [e for e in profiler.key_averages() if e.self_device_time_total > 0]
    found.sort(key=lambda event: event.self_device_time_total, reverse=True)
    listed = {
        f"{event.key[:90]}": f"{event.self_device_time_total / 1e3:.2f} ms, {event.count}x"
        for event in found[:COUNTED_KERNELS]
    }
    total = sum(event.self_device_time_total for event in found) / 1e3
    return {"all": f"{total:.2f} ms, {sum(event.count for event in found)}x", **listed}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("part", choices=CASES)
    options.add_argument("--seconds", type=float, default=2.0, help="measured time of a cell")
    args = options.parse_args()
    rows = Rows(args.out)
    peers.search_first(args.peers)
    missing = peers.importable(args.device)[1]
    for case in (CASES if args.device == "cuda" else TINY_CASES)[args.part]:
        key = str(case)
        if case.operator in missing or rows.find("network", key) is not None:
            continue
        if rows.attempts("network", key) >= 2:
            rows.add("network", key, note="no result in two attempts")
            continue
        rows.start("network", key)
        try:
            row = measure(case, args)
        except torch.OutOfMemoryError:
            row = {"note": "out of memory"}
        for name, text in row.pop("kernels", {}).items():
            rows.add(f"kernels of a training step: {key}", name, time=text)
        rows.add("network", key, **row)
        if args.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
