"""Size and cost of the named variants: ``python -m src profile --model internimage_t --size 224``.

Counts parameters and multiply-accumulates (MACs), and measures the activations that a training step
keeps for its backward pass. Everything runs on the meta device: no weights, no arithmetic, seconds
even for the 3 B network. What the published figures count is in ``docs/model_zoo.md``.

It does not measure speed; that is what ``benchmarks/`` is for.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from src.errors import UserError
from src.models.internimage.backbone import InternImageBackbone
from src.models.internimage.heads import AttentionPool
from src.models.internimage.classifier import InternImage
from src.models.internimage.dcnv3 import DCNv3
from src.models.internimage.blocks import Block

MACS_PER_SAMPLE = 5
"""Official price of one bilinear sample of one channel, weighting included."""


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass.

    Attributes:
        conv: Convolution modules.
        linear: Linear modules, the offset and mask layers of DCNv3 among them.
        products: Matrix products outside modules: centre scales, attention pooling.
        sampling: DCNv3 sampling at 5 per sampled value.
    """

    conv: int = 0
    linear: int = 0
    products: int = 0
    sampling: int = 0

    def __add__(self, other: Macs) -> Macs:
        return Macs(
            self.conv + other.conv,
            self.linear + other.linear,
            self.products + other.products,
            self.sampling + other.sampling,
        )

    @property
    def modules(self) -> int:
        """Convolution and linear modules."""
        return self.conv + self.linear

    @property
    def total(self) -> int:
        """Everything."""
        return self.modules + self.products + self.sampling


@dataclass(frozen=True)
class Activations:
    """Bytes of activations that a training step keeps for its backward pass.

    Attributes:
        plain: Without checkpointing.
        checkpointed: With one checkpoint per block.
        recomputed: Further bytes while the largest block is recomputed.
    """

    plain: int
    checkpointed: int
    recomputed: int


@dataclass(frozen=True)
class PublishedMacs:
    """A figure of the paper or the official model zoo, called FLOPs there.

    Attributes:
        text: The figure as printed.
        rule: How it follows from our counts, in words; empty if no rule reproduces it.
        compute: Counts to the printed number of giga-MACs.
    """

    text: str
    rule: str = ""
    compute: Callable[[Macs], int] | None = None


def _rounded(macs: Macs) -> int:
    return round((macs.modules + macs.sampling) / 1e9)


_MODULES_AND_SAMPLING = "modules + sampling, rounded"
PUBLISHED_PARAMETERS = {
    "internimage_t": "30M",
    "internimage_s": "50M",
    "internimage_b": "97M",
    "internimage_l": "223M",
    "internimage_xl": "335M",
    "internimage_h": "1.08B",
    "internimage_g": "3B",
}
PUBLISHED_MACS = {
    ("internimage_t", 224): PublishedMacs("5G", _MODULES_AND_SAMPLING, _rounded),
    ("internimage_s", 224): PublishedMacs("8G", _MODULES_AND_SAMPLING, _rounded),
    ("internimage_b", 224): PublishedMacs("16G", _MODULES_AND_SAMPLING, _rounded),
    ("internimage_l", 384): PublishedMacs("108G", _MODULES_AND_SAMPLING, _rounded),
    ("internimage_xl", 384): PublishedMacs("163G", _MODULES_AND_SAMPLING, _rounded),
    ("internimage_h", 224): PublishedMacs("188G"),
    ("internimage_h", 640): PublishedMacs(
        "1478G", "modules without sampling, rounded down", lambda m: m.modules // 10**9
    ),
    ("internimage_g", 512): PublishedMacs(
        "2700G",
        "modules + sampling, rounded to 10G",
        lambda m: 10 * round((m.modules + m.sampling) / 1e10),
    ),
}
"""Published figures by variant and image size."""


def count_parameters(network: nn.Module) -> int:
    """Number of trainable and frozen parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, image: Tensor) -> Macs:
    """Count the multiply-accumulates of one forward pass.

    Norms, activations, biases, softmax and residual additions are not counted, as usual.

    Args:
        network: Any network made of this project's layers; meta device recommended.
        image: Input of shape ``(N, 3, H, W)`` on the same device.

    Returns:
        The count for the whole batch.
    """
    found = [Macs()]

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        found.append(_macs_of(module, inputs, output))

    with ExitStack() as hooks, torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | DCNv3 | AttentionPool):
                hooks.callback(module.register_forward_hook(add).remove)
        network.eval()(image)
    return sum(found[1:], found[0])


def _macs_of(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Macs:
    if isinstance(module, nn.Conv2d):
        return Macs(conv=output.numel() * module.weight[0].numel())
    if isinstance(module, nn.Linear):
        return Macs(linear=output.numel() * module.in_features)
    if isinstance(module, DCNv3):
        # One product that no module call shows, see DCNv3.
        rows = module.offset.out_features + module.mask.out_features
        has_gate = module.center_feature_scale_proj_weight is not None
        return Macs(
            linear=output.numel() * rows,
            products=output.numel() * module.groups if has_gate else 0,
            sampling=MACS_PER_SAMPLE * module.num_points * output.numel(),
        )
    projections = sum(x.numel() * x.shape[-1] for x in inputs)
    scores_and_mean = 2 * inputs[1].numel()
    return Macs(products=projections + scores_and_mean)


class _SavedBytes:
    """Adds up storages once each, leaving out those of the parameters and the image."""

    def __init__(self, ignored: Sequence[Tensor]) -> None:
        # Holding the storage keeps its address from being used again.
        self.storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in ignored}
        self.total = 0

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.storages:
            self.storages[storage._cdata] = storage
            self.total += storage.nbytes()
        return tensor


def measure_activations(network: InternImageBackbone, image: Tensor) -> Activations:
    """Measure what autograd keeps between the forward and the backward pass.

    Counts the storages that operations save, once each, without parameters, optimizer state,
    gradients, workspace and fragmentation. A GPU needs all of these on top.

    Args:
        network: A trunk or classifier of this project; meta device recommended.
        image: Input of shape ``(N, 3, H, W)`` on the same device; sets the dtype.

    Returns:
        Bytes for the whole batch.
    """
    network.train()
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    plain, largest = _forward_bytes(network, image, blocks, checkpointing=False)
    kept, _ = _forward_bytes(network, image, blocks, checkpointing=True)
    return Activations(plain, kept, largest)


def _forward_bytes(
    network: InternImageBackbone, image: Tensor, blocks: list[Block], checkpointing: bool
) -> tuple[int, int]:
    """Bytes kept by the whole network, and by its largest block."""
    saved = _SavedBytes([image, *network.parameters(), *network.buffers()])
    before: dict[nn.Module, int] = {}
    per_block: list[int] = [0]

    def enter(block: nn.Module, inputs: tuple[Any, ...]) -> None:
        if checkpointing:
            saved.add(inputs[0])  # a checkpoint keeps its input outside autograd
        before[block] = saved.total

    def leave(block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        per_block.append(saved.total - before[block])

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(enter).remove)
            stack.callback(block.register_forward_hook(leave).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(saved.add, lambda t: t))
        network.set_grad_checkpointing(checkpointing)
        network(image)
    network.set_grad_checkpointing(False)
    return saved.total, max(per_block)


def main(argv: Sequence[str] | None = None) -> int:
    """Print parameters, MACs and activation memory of a variant.

    Args:
        argv: Arguments without the program name; default is the command line.

    Returns:
        0.

    Raises:
        UserError: If the variant is unknown or a size does not suit it.
    """
    args = _parser().parse_args(argv)
    names = timm.list_models("internimage*")
    if args.model not in names:
        raise UserError(f"There is no model '{args.model}'; known are {', '.join(names)}.")
    if args.batch < 1 or min(args.size) < 1:
        raise UserError("--batch and --size must be at least 1.")
    with torch.device("meta"):
        network = cast("InternImage", timm.create_model(args.model, num_classes=args.num_classes))
    print(f"{args.model}, {args.num_classes} classes")
    published = PUBLISHED_PARAMETERS.get(args.model)
    own = f"{count_parameters(network):,}"
    print(f"  parameters  {own}" + (f"  (published: {published})" if published else ""))
    for size in args.size:
        image = torch.empty(args.batch, 3, size, size, device="meta")
        _print_macs(args.model, size, args.batch, count_macs(network, image))
        _print_activations(measure_activations(network, image))
    return 0


def _print_macs(model: str, size: int, batch: int, macs: Macs) -> None:
    print(f"\n{size} x {size}, batch {batch}")
    rows = {
        "convolutions": macs.conv,
        "linear layers": macs.linear,
        "other products": macs.products,
        "DCNv3 sampling": macs.sampling,
        "total": macs.total,
    }
    for name, value in rows.items():
        print(f"  {name:15s}{value / 1e9:12.3f} GMACs")
    published = PUBLISHED_MACS.get((model, size))
    if published is not None and batch == 1:
        rule = "no rule reproduces it, see docs/model_zoo.md"
        if published.compute is not None:
            rule = f"{published.rule}: {published.compute(macs)}G"
        print(f"  {'published':15s}{published.text:>12s}        ({rule})")


def _print_activations(memory: Activations) -> None:
    print("  activations kept for the backward pass, float32")
    print(f"    plain         {_human(memory.plain)}")
    print(
        f"    checkpointed  {_human(memory.checkpointed)}, and {_human(memory.recomputed)} while "
        f"the largest block is recomputed"
    )


def _human(size: int) -> str:
    power = min(3, int(math.log(max(size, 1), 1024)))
    return f"{size / 1024**power:.2f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m src profile",
        description="Parameters, MACs and activation memory of an InternImage variant.",
    )
    parser.add_argument("--model", required=True, help="a variant, for instance internimage_t")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[224], help="sides of the square images, in pixels"
    )
    parser.add_argument("--batch", type=int, default=1, help="images per forward pass")
    parser.add_argument("--num-classes", type=int, default=1000, help="width of the logits")
    return parser
