"""Linear layers and the initial values of the official code.

Each module that owns parameters initialises them in ``reset_parameters``, so a network made on the
meta device has the same initial values after ``to_empty`` as one made on a real device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from src.models.layers.precision import autocast_dtype
from src.ops import cpu_linear, fused
from src.ops.compiled import define, is_compiled

Init = Literal["kaiming", "xavier", "lecun", "trunc_normal", "zeros"] | float
"""Initial weights: Kaiming normal for ReLU (fan out), Xavier uniform, LeCun uniform, a truncated
normal of std 0.02, zeros, or a normal of the given std."""

Xavier = Literal["normal", "uniform"]
"""The two Xavier distributions; Mask2Former uses the normal one, DINO the uniform one."""

XAVIER = {"normal": nn.init.xavier_normal_, "uniform": nn.init.xavier_uniform_}


def init_layer(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, init: Init) -> None:
    """Set the initial weight of a layer, and its bias to zero."""
    if init == "kaiming":
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    elif init == "xavier":
        nn.init.xavier_uniform_(layer.weight)
    elif init == "lecun":
        nn.init.kaiming_uniform_(layer.weight, a=1.0)
    elif init == "trunc_normal":
        nn.init.trunc_normal_(layer.weight, std=0.02)
    elif init == "zeros":
        nn.init.zeros_(layer.weight)
    else:
        nn.init.normal_(layer.weight, std=init)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Linear(nn.Linear):
    """Linear layer with given initial weights and zero bias.

    Args:
        in_features: Input width.
        out_features: Output width.
        init: Initial weights.
        bias: Whether to add a bias.
    """

    def __init__(self, in_features: int, out_features: int, init: Init, bias: bool = True) -> None:
        self.init = init
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        """Set the initial values."""
        init_layer(self, self.init)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features) -> (..., out_features)``."""
        return linear(x, self.weight, self.bias)


class XavierLinear(nn.Linear):
    """Linear layer with Xavier weights and PyTorch's own bias, as in the official transformers.

    Args:
        in_features: Input width.
        out_features: Output width.
        xavier: Distribution of the initial weights.
        bias: Whether to add a bias.
    """

    def __init__(
        self, in_features: int, out_features: int, xavier: Xavier = "normal", bias: bool = True
    ) -> None:
        self.xavier = xavier
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        """Set the initial values."""
        super().reset_parameters()
        XAVIER[self.xavier](self.weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, whose products in float32 on a CPU are those of oneDNN, eager and compiled.

    They are faster than those of MKL that PyTorch uses, above all for feature maps of many pixels
    and few channels. In bfloat16, PyTorch uses oneDNN itself. Gradients of weights are computed by
    the compiled library where it has a kernel.

    Args:
        x: Values of shape ``(..., in)``.
        weight: Weight of shape ``(out, in)``.
        bias: Bias of shape ``(out,)``.

    Returns:
        Tensor of shape ``(..., out)``.
    """
    is_float32 = x.dtype == weight.dtype == torch.float32 and autocast_dtype(x.device.type) is None
    if is_float32 and x.device.type == "cpu":
        if is_compiled() and _has_onednn():
            compiled: Tensor = torch.ops.internimage.onednn_linear.default(x, weight, bias)
            return compiled
        if uses_onednn(x):
            if not torch.is_grad_enabled():  # `Function` takes longer than small products
                return _product(x, weight, bias)
            out: Tensor = _Product.apply(x, weight, bias)
            return out
    return F.linear(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Exact GELU of `linear` in one pass without gradients, for values that `uses_onednn` takes.

    Arguments as in `linear`; under autocast they are cast.
    """
    dtype = autocast_dtype(x.device.type) or x.dtype
    bias = None if bias is None else bias.to(dtype)
    return _product(x.to(dtype), weight.to(dtype), bias, "gelu", "none")


def uses_onednn(x: Tensor) -> bool:
    """Whether products of ``x`` are eager, on a CPU with oneDNN, in float32 or bfloat16."""
    if x.device.type != "cpu" or not fused.is_eager() or not _has_onednn():
        return False
    dtype = autocast_dtype("cpu") or x.dtype
    return x.numel() > 0 and (
        dtype == torch.float32
        or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


# The compiler cannot trace this function. `torch.compiler.assume_constant_result` would import the
# compiler: a second for everyone who imports this package.
_has_onednn._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, *act: str) -> Tensor:
    name, variant = act or ("none", "")
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], variant)
    return out


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of a product."""
    rows = grad.reshape(-1, grad.shape[-1])
    # With create_graph=True, by operators that can be differentiated again.
    is_final = grad.numel() > 0 and not torch.is_grad_enabled()
    grad_x = _product if is_final else F.linear
    has_kernel = is_final and _has_weight_gradient(x)
    grad_weight = cpu_linear.weight_gradient if has_kernel else _weight_gradient
    return (
        grad_x(grad, weight.t(), None) if needed[0] else None,
        grad_weight(rows, x.reshape(-1, x.shape[-1])) if needed[1] else None,
        rows.sum(0) if needed[2] else None,
    )


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    return grad.t() @ x


def _has_weight_gradient(x: Tensor) -> bool:
    is_float32 = x.dtype == torch.float32
    return is_float32 and x.shape[-1] % cpu_linear.MULTIPLE == 0 and cpu_linear.HAS_KERNELS


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return _gradients(grad, x, weight, None, ctx.needs_input_grad)


def _compiled_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _product(x, weight, bias) if x.numel() else F.linear(x, weight, bias)


define("onednn_linear", "Tensor x, Tensor weight, Tensor? bias", _compiled_product, _gradients)
