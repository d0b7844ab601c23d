"""Text towers of open_clip, which can also be built on the meta device and in shards.

The transformers, their configurations and their initial values are those of the package
``open_clip_torch`` (MIT), which the extra ``pretraining`` installs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from src.errors import UserError

_MASKED = -1e4
"""Added to the scores of masked tokens instead of minus infinity, with the same softmax: buffers
shall be finite, because they are checked and averaged like weights."""


class TextTower(nn.Module):
    """Transformer over tokens, pooled at the end-of-text token, with a linear projection.

    The defaults are the text tower of CLIP ViT-B.

    Args:
        width: Width of the tokens.
        heads: Attention heads, a divisor of ``width``.
        layers: Number of layers.
        output_dim: Width of the features.
        context_length: Largest number of tokens of a text.
        vocab_size: Number of tokens of the tokenizer.
        frozen: Do not train the tower; for given weights.
        grad_checkpointing: Recompute each layer in the backward pass.

    Raises:
        UserError: If open_clip is not installed or an argument is invalid.
    """

    def __init__(
        self,
        width: int = 512,
        heads: int = 8,
        layers: int = 12,
        output_dim: int = 512,
        context_length: int = 77,
        vocab_size: int = 49408,
        frozen: bool = False,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        given = {
            "width": width,
            "heads": heads,
            "layers": layers,
            "output_dim": output_dim,
            "context_length": context_length,
            "vocab_size": vocab_size,
        }
        for name, value in given.items():
            if value < 1:
                raise UserError(f"{name} of the text tower must be at least 1, got {value}.")
        if width % heads:
            raise UserError(
                f"The width of the text tower, {width}, must be a multiple of its {heads} heads."
            )
        self._finish(given, frozen, grad_checkpointing)

    def _finish(self, options: dict[str, Any], frozen: bool, grad_checkpointing: bool) -> None:
        self.encoder: Any = _make_encoder(options)
        self.output_dim: int = options["output_dim"]
        self.context_length: int = self.encoder.context_length
        self.is_frozen = frozen
        self.set_grad_checkpointing(grad_checkpointing)
        if frozen:
            self.requires_grad_(False)
            self.eval()

    @property
    def layers(self) -> list[nn.Module]:
        """The layers, which `set_grad_checkpointing` recomputes one at a time."""
        return list(self.encoder.transformer.resblocks)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each layer in the backward pass, or not."""
        self.encoder.transformer.grad_checkpointing = enable

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode; a frozen tower stays in evaluation mode."""
        return super().train(mode and not self.is_frozen)

    def no_weight_decay(self) -> set[str]:
        """Parameters excluded from weight decay in addition to 1-D parameters and biases."""
        return {"encoder.positional_embedding"}

    def forward(self, text: Tensor) -> Tensor:
        """Token ids ``(N, L)``, int64, padded, to features ``(N, output_dim)``.

        Raises:
            UserError: If there are more tokens than ``context_length``.
        """
        if text.shape[1] > self.context_length:
            raise UserError(
                f"The texts have {text.shape[1]} tokens, the text tower reads at most"
                f" {self.context_length}; set data.context_length to that."
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            features: Tensor = self.encoder(text)
        return features


class OpenCLIPTextTower(TextTower):
    """Text tower of a model of open_clip.

    Args:
        model: Name in ``open_clip.list_models()``, for example ``ViT-L-14``; models with text
            towers of the package ``transformers`` are not supported.
        frozen: Do not train the tower; for given weights.
        grad_checkpointing: Recompute each layer in the backward pass.

    Raises:
        UserError: If open_clip is not installed or there is no such model.
    """

    def __init__(
        self, model: str = "ViT-L-14", frozen: bool = False, grad_checkpointing: bool = False
    ) -> None:
        nn.Module.__init__(self)
        self._finish(_options_of(model), frozen, grad_checkpointing)


def open_clip() -> Any:
    """The package open_clip.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise UserError(
            f"Text towers need the package {error.name}, which is not installed. Run:"
            ' pip install -c constraints.txt -e ".[pretraining]"'
        ) from error
    return open_clip


def _options_of(model: str) -> dict[str, Any]:
    """Arguments of open_clip's ``TextTransformer`` for one of its models."""
    package = open_clip()
    known = package.list_models()
    config = package.get_model_config(model) if model in known else None
    if config is None:
        raise UserError(
            f"open_clip has no model {model!r}; expected one of {', '.join(known[:5])}, ...: see"
            " open_clip.list_models()."
        )
    text = dict(config["text_cfg"])
    if "hf_model_name" in text:
        raise UserError(
            f"The text tower of {model} is a model of the package transformers, which is not"
            " supported; use another model of open_clip, for example ViT-L-14."
        )
    activation, norm = text.pop("act_kwargs", None), text.pop("norm_kwargs", None)
    transformer = package.transformer
    act_layer = transformer.QuickGELU if config.get("quick_gelu") else nn.GELU
    text["act_layer"] = partial(act_layer, **activation) if activation else act_layer
    layer_norm = transformer.LayerNorm
    text["norm_layer"] = partial(layer_norm, **norm) if norm else layer_norm
    accepted = inspect.signature(transformer.TextTransformer).parameters
    options = {name: value for name, value in text.items() if name in accepted}
    return options | {"output_dim": int(config["embed_dim"])}


def _make_encoder(options: dict[str, Any]) -> Any:
    """A ``TextTransformer`` whose modules define ``reset_parameters``.

    Its constructor initialises all layers at once, which a network in shards cannot; it has no
    effect on the random numbers here.
    """
    transformer = open_clip().transformer
    with torch.random.fork_rng(devices=[]):
        encoder: Any = transformer.TextTransformer(**options)
    _define_initial_values(encoder)
    if not any(parameter.is_meta for parameter in encoder.parameters()):
        for module in encoder.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return encoder


def _define_initial_values(encoder: Any) -> None:
    """Give each module the initial values that open_clip's constructor sets for all."""
    width, layers = encoder.width, encoder.transformer.layers
    projection, inner = width**-0.5 * (2 * layers) ** -0.5, (2 * width) ** -0.5
    _set_reset(encoder, _reset_encoder)
    _set_reset(encoder.token_embedding, partial(_normal, std=0.02))
    for block in encoder.transformer.resblocks:
        if isinstance(block.attn, nn.MultiheadAttention):
            _set_reset(block.attn, partial(_reset_attention, std=width**-0.5))
            _set_reset(block.attn.out_proj, partial(_normal, std=projection))
            _set_reset(block.mlp.c_fc, partial(_reset_linear, std=inner))
            _set_reset(block.mlp.c_proj, partial(_reset_linear, std=projection))
    if isinstance(encoder.text_projection, nn.Linear):
        _set_reset(encoder.text_projection, partial(_normal, std=width**-0.5))


def _set_reset(module: Any, reset: Callable[[Any], None]) -> None:
    module.reset_parameters = partial(reset, module)


@torch.no_grad()
def _reset_encoder(encoder: Any) -> None:
    nn.init.normal_(encoder.positional_embedding, std=0.01)
    if encoder.cls_emb is not None:
        nn.init.normal_(encoder.cls_emb, std=0.01)
    if isinstance(encoder.text_projection, nn.Parameter):
        nn.init.normal_(encoder.text_projection, std=encoder.width**-0.5)
    if encoder.attn_mask is not None:
        encoder.attn_mask.copy_(encoder.build_causal_mask().clamp(min=_MASKED))


@torch.no_grad()
def _normal(layer: Any, std: float) -> None:
    nn.init.normal_(layer.weight, std=std)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)


def _reset_linear(layer: nn.Linear, std: float) -> None:
    nn.Linear.reset_parameters(layer)  # the bias of PyTorch
    nn.init.normal_(layer.weight, std=std)


def _reset_attention(attention: nn.MultiheadAttention, std: float) -> None:
    nn.init.normal_(attention.in_proj_weight, std=std)
    nn.init.zeros_(attention.in_proj_bias)
