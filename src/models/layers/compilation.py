"""Compile the repeated parts of a network with ``torch.compile``.

A network repeats few kinds of layers many times: blocks in a backbone, layers in an encoder or
decoder. `RepeatedPart` is their base. All parts of one kind share one compiled function, which is
compiled once for every shape and not once for every part, so that the time to the first step does
not grow with the depth of the network. What surrounds the parts stays eager: hooks (and with them
sharding), activation checkpointing and autocast work as without compilation, in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from src.errors import UserError

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
"""Modes of ``torch.compile``."""

VARIANTS = 64
"""Graphs that one part may be compiled to: widths of the stages, training or not, batch sizes."""


class Compilation(NamedTuple):
    """How parts are compiled.

    Attributes:
        mode: Mode of ``torch.compile``.
        dynamic: Compile for all sizes of feature maps at once, instead of once for every size.
    """

    mode: Mode = "default"
    dynamic: bool = False


class RepeatedPart(nn.Module):
    """Base of layers that a network repeats; `compile_parts` compiles their `compute`.

    Derived classes define `compute`, and override `forward` if something must happen outside the
    compiled function.
    """

    compilation: Compilation | None = None

    def compute(self, *args: Any) -> Tensor:
        """Forward pass of the part, without graph breaks."""
        raise TypeError(f"{type(self).__name__} must define compute()")

    def run(self, *args: Any) -> Tensor:
        """`compute`, compiled if the part is; inside another trace it is part of that."""
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
        if self.compilation is None or is_traced:
            return self.compute(*args)
        out: Tensor = _compiled(type(self).compute, self.compilation)(self, *args)
        return out

    def forward(self, *args: Any) -> Tensor:
        """See `compute`."""
        return self.run(*args)


# The function is not an attribute of the part, so that copies of a network run with their own
# weights, and networks can be pickled.
@cache
def _compiled(compute: Callable[..., Tensor], compilation: Compilation) -> Callable[..., Tensor]:
    # Inductor takes (N, H, W, C) for (N, C, H, W) and would store H innermost ("channels last").
    options = {"layout_optimization": False, **torch._inductor.list_mode_options(compilation.mode)}
    return torch.compile(compute, fullgraph=True, dynamic=compilation.dynamic, options=options)


def compile_parts(network: nn.Module, compilation: Compilation) -> None:
    """Compile the repeated parts of a network, in place, at their next forward pass.

    Names of parameters and submodules stay the same. Shard the network afterwards.

    Args:
        network: Network with `RepeatedPart`s.
        compilation: How to compile.

    Raises:
        UserError: If there is no such mode, or no repeated part.
    """
    if compilation.mode not in get_args(Mode):
        raise UserError(
            f"The mode of compilation must be one of {', '.join(get_args(Mode))}, got"
            f" {compilation.mode!r}."
        )
    parts = [module for module in network.modules() if isinstance(module, RepeatedPart)]
    if not parts:
        raise UserError(
            f"Nothing in {type(network).__name__} can be compiled: no module derives from"
            " RepeatedPart. Set model.compile to false."
        )
    # Beyond this number of graphs, fullgraph=True raises an error.
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    for part in parts:
        part.compilation = compilation


def check_compiler(device_type: str) -> None:
    """Check that the compiler that ``torch.compile`` needs on a device is installed.

    Raises:
        UserError: If there is no C++ compiler (CPU) or no Triton (GPU).
    """
    if device_type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise UserError(
                "model.compile needs a C++ compiler on a CPU (g++ or clang++, or the one that the"
                " environment variable CXX names), and none was found. Set model.compile to false."
            ) from error
    elif device_type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UserError(
                "model.compile needs Triton on a GPU, and Triton is missing or does not support"
                " this GPU. Run `pip install triton`, or set model.compile to false."
            )
