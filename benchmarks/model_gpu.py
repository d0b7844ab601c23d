"""Images per second of whole InternImage networks on a GPU, in training and in inference.

    python benchmarks/model_gpu.py [--models internimage_t internimage_b internimage_h --size 224]

The same network, weights and images with our operator, eager and under torch.compile, with the
plain path, and, where the extension `DCNv3` can be imported, with the official operator. Ours and
plain run in bfloat16 autocast, the official operator, which has no bfloat16, in float16.
Logits are compared with the float32 oracle's before anything is timed. A training step is forward,
cross entropy, backward and an AdamW step. Times are medians of CUDA events. Writes
benchmarks/results/model_gpu.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import timm
import torch
import torch.nn.functional as F
from gpu_peers import importable, official
from op_gpu import milliseconds

import src.models  # noqa: F401  registers the networks
from src import files
from src.ops import backends, dcnv3, dcnv3_grid_sample, dcnv3_reference


def official_dcnv3(x, offset, logits, *, groups, **_):
    """The official operator with the arguments of ours."""
    return official(x, offset.to(x.dtype), logits.to(x.dtype), groups)


# name: operator, autocast dtype, compiled
PATHS = {
    "ours": (dcnv3, torch.bfloat16, False),
    "ours, compiled": (dcnv3, torch.bfloat16, True),
    "plain": (dcnv3_grid_sample, torch.bfloat16, False),
    "official": (official_dcnv3, torch.float16, False),
}
TOLERANCE = 0.05  # of the largest logit


def make_network(name: str):
    torch.manual_seed(0)
    network = timm.create_model(name).cuda()
    for key, parameter in network.named_parameters():
        if ".offset." in key:  # offsets of about a pixel, as after training
            torch.nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.5)
    return network


def expected_logits(name: str, images):
    with mock.patch("src.models.internimage.dcnv3.dcnv3", dcnv3_reference), torch.no_grad():
        return make_network(name).eval()(images)


def measure(name: str, images, path: str, args) -> dict[str, object]:
    """Images per second of one path, and its largest error relative to the largest logit."""
    operator, dtype, is_compiled = PATHS[path]
    with mock.patch("src.models.internimage.dcnv3.dcnv3", operator):
        network = make_network(name)
        labels = torch.arange(len(images), device="cuda") % 1000
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
        scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
        call = torch.compile(network, fullgraph=True) if is_compiled else network

        def forward():
            with torch.no_grad(), torch.autocast("cuda", dtype):
                return call(images)

        def train():
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", dtype):
                loss = F.cross_entropy(call(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        network.eval()
        want = expected_logits(name, images[:2])
        with torch.no_grad(), torch.autocast("cuda", dtype):
            error = ((network(images[:2]) - want).abs().max() / want.abs().max()).item()
        if not error <= TOLERANCE:
            return {"error": error}
        speed = {"inference": len(images) * 1e3 / milliseconds({"": forward}, args.seconds)[""]}
        network.train()
        speed["training"] = len(images) * 1e3 / milliseconds({"": train}, args.seconds)[""]
        return {"error": error, **speed}


def report(result: dict) -> str:
    facts = "\n".join(f"- {key}: {value}" for key, value in result["machine"].items())
    lines = ["| model | N | path | inference images/s | training images/s | error of the logits |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in result["rows"]:
        speeds = [f"{row[key]:.1f}" if key in row else "-" for key in ("inference", "training")]
        detail = row.get("problem") or f"{row['error']:.1e}"
        cells = row["model"], str(row["batch"]), row["path"], *speeds, detail
        lines.append("| " + " | ".join(cells) + " |")
    return (
        f"# InternImage on a GPU\n\nWritten by `{result['command']}`.\n\n{facts}\n\n"
        + "\n".join(lines)
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    models = ["internimage_t", "internimage_b", "internimage_h"]
    parser.add_argument("--models", nargs="+", default=models)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("model_gpu.py needs a CUDA device, and PyTorch sees none here.")
    missing = importable()[1]
    rows = []
    for name in args.models:
        for batch in args.batch:
            images = torch.randn(batch, 3, args.size, args.size, device="cuda")
            for path in PATHS:
                if path in missing:
                    continue
                row = {"model": name, "batch": batch, "path": path}
                try:
                    row |= measure(name, images, path, args)
                except torch.OutOfMemoryError:
                    row["problem"] = "out of memory"
                torch.cuda.empty_cache()
                rows.append(row)
                print(row, flush=True)
    result = {
        "command": " ".join(["python", "benchmarks/model_gpu.py", *sys.argv[1:]]),
        "machine": {
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "ours": backends()["cuda"],
            "not importable": missing or "none",
            "date": date.today().isoformat(),
        },
        "rows": rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    files.write_text(args.out / "model_gpu.json", json.dumps(result, indent=1) + "\n")
    files.write_text(args.out / "model_gpu.md", report(result))
    print(f"Written to {args.out / 'model_gpu.md'} and model_gpu.json")


if __name__ == "__main__":
    main()
