"""Bytes moved and kernels launched by one training step on a GPU, counted without a GPU.

Usage: ``python benchmarks/traffic.py [--model internimage_t --batch 128 --drop_path 0.1]``. To
compare with another version of the project, check it out and run ``--root FOLDER`` with this file.

The step is forward pass, backward pass and fused AdamW under bfloat16 autocast, eager, on a GPU
with Triton. It runs on the meta device, whose tensors have shapes and no data, with the rules of
autocast on CUDA (the autograd engine refuses fake CUDA tensors where there is no driver). Every
operator that is not a view reads its inputs and writes its outputs once, which is the least that it
can move; `launches` states what is counted for operators of several kernels. Real kernels move more
where caches are missed; the ratio of two versions is what this is for. The result is one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DTYPE = torch.bfloat16
FILLS = ("new_ones", "new_zeros", "new_full", "ones_like", "zeros_like", "full_like")
"""Operators that only write; their argument gives shape and dtype."""
CONVOLUTIONS = {"convolution": 0, "convolution_backward": 1}
"""Operators whose first result has the layout of this argument."""
COPIES = ("copy_", "_foreach_copy_")
"""Operators that do not read their first argument, which they overwrite."""


def launches(name: str, args: tuple[Any, ...]) -> int:
    """Kernels of an operator; 1 unless listed."""
    if name == "native_layer_norm_backward":
        return 2  # input; weight and bias
    if name == "convolution_backward":
        return sum(args[-1])  # input, weight, bias
    if name == "convolution":  # cuDNN adds the bias afterwards, the depthwise kernel inside
        return 1 + (args[2] is not None and args[-1] == 1)
    if name == "dcnv3_backward":
        return 3  # zero fill, kernel, conversion
    return 1


def size(tensor: Tensor) -> int:
    """Bytes of the distinct elements of a tensor."""
    numel = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numel *= length if stride else 1
    return numel * tensor.element_size()


class Traffic(TorchDispatchMode):
    """Counts what runs within: bytes and kernels by operator."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        if name in CONVOLUTIONS:
            out = _in_layout_of(args[CONVOLUTIONS[name]], out)
        if self._has_kernel(func, name, args, out):
            read = () if name in FILLS else args[1:] if name in COPIES else (args, kwargs)
            inputs = [t for t in tree_leaves(read) if isinstance(t, Tensor)]
            outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
            written = outputs or [t for t in tree_leaves(args[0]) if isinstance(t, Tensor)]
            self.bytes[name] += sum(map(size, inputs)) + sum(map(size, written))
            self.launches[name] += launches(name, args)
        return out

    @staticmethod
    def _has_kernel(func: Any, name: str, args: tuple[Any, ...], out: Any) -> bool:
        if name.startswith(("empty", "new_empty")) or name in ("detach", "_local_scalar_dense"):
            return False
        if name in ("_unsafe_view", "_reshape_alias", "lift_fresh"):
            return False
        returns = func._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        return not is_view


def _in_layout_of(images: Tensor, results: Any) -> Any:
    """Result of a convolution as cuDNN writes it; the meta device has contiguous NCHW results."""
    if not images.is_contiguous(memory_format=torch.channels_last):
        return results
    if isinstance(results, Tensor):
        return results.contiguous(memory_format=torch.channels_last)
    grad = results[0]
    return None if grad is None else _in_layout_of(images, grad), *results[1:]


class Autocast(TorchFunctionMode):
    """Autocast of CUDA for the meta device, which has none: each weight is cast once per step."""

    LOW = ("linear", "conv2d", "matmul", "bmm", "scaled_dot_product_attention")
    FULL = ("layer_norm", "softmax", "log_softmax", "cross_entropy", "cross_entropy_loss")

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in self.LOW:
            args, kwargs = tree_map(self._lower, (args, kwargs))
        elif name in self.FULL:
            args, kwargs = tree_map(self._raise, (args, kwargs))
        return func(*args, **kwargs)

    def _lower(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not isinstance(value, torch.nn.Parameter):
            return value.to(DTYPE)
        if id(value) not in self.weights:
            self.weights[id(value)] = value.to(DTYPE)
        return self.weights[id(value)]

    @staticmethod
    def _raise(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.dtype == DTYPE else value


def count(model: str, batch: int, image_size: int, drop_path: float) -> Traffic:
    """Traffic of one step."""
    import timm

    import src.models  # noqa: F401  registers the networks
    from src.models.layers import precision

    precision.autocast_dtype_of_meta = DTYPE  # earlier versions do not read it
    with suppress(ImportError):  # earlier versions do not have it
        from src.ops import fused

        fused.is_available_on_meta = True
    with torch.device("meta"):
        network = timm.create_model(model, drop_path_rate=drop_path).train()
        images = torch.empty(batch, 3, image_size, image_size)
        labels = torch.empty(batch, dtype=torch.long)
    traffic = Traffic()
    with traffic:
        with Autocast():
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
    # Fused AdamW reads parameter, gradient and two moments, and writes all but the gradient.
    traffic.bytes["_fused_adamw_"] = 7 * 4 * sum(p.numel() for p in network.parameters())
    traffic.launches["_fused_adamw_"] = 2  # with and without weight decay
    return traffic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="internimage_t")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--drop_path", type=float, default=0.1)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--top", type=int, default=16, help="operators to list")
    args = parser.parse_args()
    sys.path.insert(0, str(args.root.resolve()))
    traffic = count(args.model, args.batch, args.size, args.drop_path)
    total, kernels = sum(traffic.bytes.values()), sum(traffic.launches.values())
    for name, moved in traffic.bytes.most_common(args.top):
        print(f"{name:36s} {moved / 1e9:8.2f} GB {traffic.launches[name]:6d} launches")
    result = {"model": args.model, "batch": args.batch}
    print(json.dumps(result | {"GB": round(total / 1e9, 2), "launches": kernels}))


if __name__ == "__main__":
    main()
