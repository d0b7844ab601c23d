"""Checks of the first run that are no command lines; each prints what it found in its last line.

An assertion that fails, or an error, is an exit code of 1.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu import network_speed, peers
from benchmarks.gpu.rows import ROOT
from src.cli import build
from src.models import InternImage
from src.ops import backends, ms_deform_attn

STEPS = 5
LINKS = 40
# Autocast dtype; tolerances of the loss and of the norm of the gradients.
PRECISIONS: dict[str, tuple[torch.dtype | None, float, float]] = {
    "fp32": (None, 1e-3, 1e-2),
    "bf16": (torch.bfloat16, 2e-2, 1e-1),
}


def cuda_graphs(args: argparse.Namespace, _: list[str]) -> str:
    """The losses of some training steps: replayed from a CUDA graph, and eager."""
    if args.device == "cpu":
        return "left out: there are no CUDA graphs on a CPU"
    _, step = _training_step(args.device)
    want = [step().item() for _ in range(STEPS)]
    network, step = _training_step(args.device)
    start = copy.deepcopy(network.state_dict())
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    network.load_state_dict(start)
    got = []
    for _ in range(STEPS):
        graph.replay()
        got.append(loss.item())
    worst = max(abs(a - b) / abs(b) for a, b in zip(got, want, strict=True))
    assert worst < 0.02, f"replayed {got}, eager {want}"
    return f"losses of {STEPS} steps within {worst:.1e} of the eager ones, last {got[-1]:.3f}"


def _training_step(device: str) -> tuple[InternImage, Callable[[], Tensor]]:
    """A tiny network and its step; SGD without momentum, so that weights are all of its state."""
    torch.manual_seed(0)
    network = InternImage(**network_speed.TINY).to(device).train()
    images = torch.randn(8, 3, 64, 64, device=device)
    labels = torch.arange(8, device=device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, cache_enabled=False):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return network, step


def compiled(args: argparse.Namespace, recipe: list[str]) -> str:
    """Training loss and gradients of a recipe's first batch, compiled and eager."""
    found = []
    for name, (dtype, loss_tolerance, norm_tolerance) in PRECISIONS.items():
        (loss, norm), (other_loss, other_norm) = (
            _loss_and_norm([*recipe, "--model.compile", compiles], args.device, dtype)
            for compiles in ("false", "true")
        )
        text = f"{name}: loss {other_loss:.5f}, eager {loss:.5f};"
        text += f" gradient norm {other_norm:.4f}, eager {norm:.4f}"
        assert abs(loss - other_loss) < loss_tolerance * abs(loss), text
        assert abs(norm - other_norm) < norm_tolerance * norm, text
        found.append(text)
    return "; ".join(found)


def _loss_and_norm(
    recipe: list[str], device: str, dtype: torch.dtype | None
) -> tuple[float, float]:
    """Loss of the first batch and norm of its gradients."""
    torch.manual_seed(0)
    task, batch = _task_and_batch(recipe, device)
    task.train()
    torch.manual_seed(0)
    with torch.autocast(device, dtype, enabled=dtype is not None):
        loss = task.training_step(batch, 0)
    loss.backward()
    norms = torch.stack([p.grad.norm() for p in task.parameters() if p.grad is not None])
    return loss.item(), norms.norm().item()


def _task_and_batch(recipe: list[str], device: str) -> tuple[Any, Any]:
    from lightning.fabric.utilities import move_data_to_device

    cli = build([*recipe, "--data.num_workers", "0", "--trainer.accelerator", "cpu"])
    cli.datamodule.setup("fit")
    batch = cli.datamodule.normalise(next(iter(cli.datamodule.train_dataloader())))
    return cli.model.to(device), move_data_to_device(batch, torch.device(device))


def dino(args: argparse.Namespace, recipe: list[str]) -> str:
    """DINO's scores, and the attention with its gradients, against the same on the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    task, batch = _task_and_batch(recipe, "cpu")
    network = task.network.eval()
    image, size = batch["image"], batch["size"]
    with torch.no_grad():
        want = torch.cat([found.scores for found in network(image, size)])
        network.to(args.device)
        got = torch.cat([found.scores for found in network(image.to(args.device), size)]).cpu()
    scores = ((got - want).abs().max() / want.abs().max()).item()
    attention = _attention_error(args.device)
    assert scores < 1e-3, f"scores differ by {scores:.1e}"
    assert attention < 1e-4, f"the attention differs by {attention:.1e}"
    kind = backends("ms_deform_attn")[args.device]
    return f"{kind}: scores within {scores:.1e}, attention and gradients within {attention:.1e}"


def _attention_error(device: str) -> float:
    """Largest error of the attention and its gradients in float32, relative to the largest value.

    Sampling locations keep away from integers, where the derivative jumps.
    """
    shapes = [(32, 40), (16, 20), (8, 10), (4, 5)]
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, sum(h * w for h, w in shapes), 8, 32, generator=generator)
    cells = torch.rand(2, 300, 8, 4, 4, 2, generator=generator) * 0.8 + 0.1
    sides = torch.tensor([[w, h] for h, w in shapes]).view(4, 1, 2)
    corner = (torch.rand(cells.shape, generator=generator) * (sides - 1)).floor()
    locations = (corner + cells + 0.5) / sides
    weights = torch.rand(2, 300, 8, 4, 4, generator=generator).flatten(-2).softmax(-1)
    weights = weights.unflatten(-1, (4, 4))
    grad = torch.randn(2, 300, 256, generator=generator)

    def results(device: str, dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(device, dtype).requires_grad_() for t in (value, locations, weights)]
        out = ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2])
        grads = torch.autograd.grad(out, leaves, grad.to(out))
        return [t.detach().double().cpu() for t in (out, *grads)]

    pairs = zip(results(device, torch.float32), results("cpu", torch.float64), strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def peak(args: argparse.Namespace, recipe: list[str]) -> str:
    """The planned peak of a training on one GPU, and the measured one."""
    from src.cli.commands.plan import Plan, Recipe

    with contextlib.redirect_stdout(io.StringIO()):
        plan = Plan(Recipe.create(recipe, run=False), 1, args.num_classes)
    batch = int(plan.recipe.data["batch_size"])
    planned = plan.need("ddp", batch, plan.checkpointing).total
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "speed.json"
        command = [sys.executable, "-m", "src", "benchmark", *recipe, "--one_batch"]
        command += ["--warmup", "2", "--steps", "3", "--output", str(output)]
        command += ["--model.weights", "null"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if result.returncode:
            sys.exit(result.stdout + result.stderr)
        measured = json.loads(output.read_text())["training"]["peak_bytes"]
    text = f"planned {planned / 2**30:.2f} GiB, measured {measured / 2**30:.2f} GiB"
    return f"{text}, planned / measured {planned / measured:.2f}"


def links(args: argparse.Namespace, _: list[str]) -> str:
    """A folder of links to the images of another one, with a number of links to each."""
    found = [path for path in sorted(args.root.glob("*/*/*")) if path.is_file()]
    for path in found:
        target = args.links / path.relative_to(args.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        for number in range(LINKS if path.relative_to(args.root).parts[0] == "train" else 1):
            link = target.with_name(f"{number}_{target.name}")
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve())
    return f"{LINKS} links to each training image of {len(found)} images"


CHECKS = {
    "links": links,
    "cuda_graphs": cuda_graphs,
    "compiled": compiled,
    "dino": dino,
    "peak": peak,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("check", choices=CHECKS)
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--peers", type=Path)
    options.add_argument("--num_classes", type=int)
    options.add_argument("--root", type=Path, help="of links: images in the ImageNet layout")
    options.add_argument("--links", type=Path, help="of links: the new folder")
    args, recipe = options.parse_known_args()
    peers.search_first(args.peers)
    print(CHECKS[args.check](args, recipe))


if __name__ == "__main__":
    main()
