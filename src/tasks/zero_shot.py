"""Zero-shot classification: classes described by texts (Radford et al., ICML 2021).

The embedding of a class is the mean of the text features of all templates, filled with its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import UserError
from src.models.image_text.text_tower import open_clip

OPENAI = "openai"
"""Name of the 80 templates that CLIP was evaluated with on ImageNet."""
Tokenize = Callable[[str], Tensor]
"""Text to token ids, int64, ``(L,)``."""
_TEXTS = 512  # in a forward pass


def check_templates(templates: Sequence[str] | str) -> None:
    """Refuse templates that class names cannot be inserted into.

    Raises:
        UserError: If there are none, or one does not have the placeholder ``{}``.
    """
    if templates == OPENAI:
        return
    wrong = [templates] if isinstance(templates, str) else [t for t in templates if "{}" not in t]
    if wrong or not templates:
        raise UserError(
            f"model.templates accepts {OPENAI!r} or a list of texts with the placeholder {{}} for"
            f" the name of a class, got {wrong[0] if wrong else templates!r}."
        )


def prompts(templates: Sequence[str] | str, class_name: str) -> list[str]:
    """All templates filled with the name of a class."""
    if templates == OPENAI:
        return [fill(class_name) for fill in open_clip().OPENAI_IMAGENET_TEMPLATES]
    return [template.replace("{}", class_name) for template in templates]


@torch.no_grad()
def class_embeddings(
    network: nn.Module,
    class_names: Sequence[str],
    templates: Sequence[str] | str,
    tokenize: Tokenize,
    device: torch.device,
) -> Tensor:
    """Embedding of every class, of length 1, float32, shape ``(K, D)``.

    Must be called on all ranks of a sharded network.

    Args:
        network: An `ImageTextModel`.
        class_names: Names of the classes.
        templates: See `check_templates`.
        tokenize: Tokenizer of the training data.
        device: Device of the network.
    """
    texts = [prompts(templates, name) for name in class_names]
    tokens = torch.stack([tokenize(text) for of_class in texts for text in of_class])
    features = torch.cat([network(text=part.to(device)).text for part in tokens.split(_TEXTS)])
    means = features.unflatten(0, (len(texts), -1)).mean(1)
    return F.normalize(means, dim=-1)
