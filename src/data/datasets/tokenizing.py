"""Texts to token ids with the tokenizers of open_clip."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from src.errors import UserError

INSTALL = 'pip install -c constraints.txt -e ".[pretraining]"'
_CHARACTERS_PER_TOKEN = 24  # longer than nearly all tokens
_MOST_CACHED = 200_000  # words; open_clip's own cache has no limit


class Tokenizer:
    """Tokenizer that is built in the process that uses it.

    Args:
        name: "clip" for the byte-pair encoding of CLIP, which open_clip contains, or the name of a
            model of open_clip, whose tokenizer may be downloaded.
        context_length: Tokens of a text; longer texts are cut, shorter ones padded.
    """

    def __init__(self, name: str, context_length: int) -> None:
        self.name, self.context_length = name, context_length
        self._tokenizer: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Name and length only."""
        return {**self.__dict__, "_tokenizer": None}

    def __call__(self, text: str) -> Tensor:
        """Token ids, int64 ``(context_length,)``."""
        if self._tokenizer is None:
            self._tokenizer = self._built()
        # The encoder takes quadratic time for a very long word.
        cut = text[: _CHARACTERS_PER_TOKEN * self.context_length]
        tokens: Tensor = self._tokenizer([cut], context_length=self.context_length)[0]
        cache = getattr(self._tokenizer, "cache", None)
        if cache is not None and len(cache) > _MOST_CACHED:
            self._tokenizer = None
        return tokens.to(torch.int64)

    def check(self) -> None:
        """Build the tokenizer once.

        Raises:
            UserError: If open_clip is missing or does not know the name.
        """
        self._tokenizer = self._built()

    def _built(self) -> Any:
        try:
            import open_clip
        except ImportError as error:
            raise UserError(f"Image-text data need open_clip: {INSTALL}") from error
        if self.name == "clip":
            return open_clip.SimpleTokenizer(context_length=self.context_length)
        try:
            # For an unknown name, open_clip would return the tokenizer of CLIP. For a repository
            # ("hf-hub:...") or a folder, it would pass on settings in it, which can run code.
            if self.name not in open_clip.list_models():
                raise ValueError("open_clip has no such model")
            return open_clip.get_tokenizer(self.name, context_length=self.context_length)
        except Exception as error:  # unknown names, missing packages, failed downloads
            text = " ".join(str(error).split())[:200].rstrip(".")
            raise UserError(
                f'data.tokenizer accepts "clip" or the name of an open_clip model, got '
                f"{self.name!r} ({text})."
            ) from error
