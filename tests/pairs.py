"""A small data module of image-text pairs in memory: squares of one colour and their names."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.datamodules import BaseDataModule

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "white": (220, 220, 220)}
WORDS = ["", *COLOURS, "a", "square", "photo", "of"]
LENGTH = 6
END = 39  # the largest id: where the text tower pools

BACKBONE = {"channels": 8, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]}
TEXT = {"width": 16, "heads": 2, "layers": 1, "output_dim": 12, "vocab_size": 40}
TEXT |= {"context_length": 6}


def image_text_recipe() -> dict[str, Any]:
    return {
        "model": {
            "class_path": "ImageTextTask",
            "init_args": {
                "network": {
                    "class_path": "ImageTextModel",
                    "init_args": {
                        "backbone": {"class_path": "InternImage", "init_args": BACKBONE},
                        "text": {"class_path": "TextTower", "init_args": TEXT},
                    },
                },
                "templates": ["a {} square", "a photo of a {}."],
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3.0e-3}},
                "lr_scheduler": {"class_path": "WarmupCosine", "init_args": {"warmup_epochs": 1}},
                "reference_batch_size": None,
            },
        },
        "data": {"class_path": "tests.pairs.SquarePairs"},
        "trainer": {
            "max_epochs": 6,
            "accelerator": "cpu",
            "gradient_clip_val": 5.0,
            "num_sanity_val_steps": 1,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
        },
    }


def tokenize(text: str) -> Tensor:
    """One token per word."""
    ids = [WORDS.index(word.strip(".")) for word in text.split()][: LENGTH - 1]
    tokens = torch.zeros(LENGTH, dtype=torch.long)
    tokens[: len(ids) + 1] = torch.tensor([*ids, END])
    return tokens


class Squares(Dataset):
    def __init__(self, count: int, size: int, key: str) -> None:
        self.count, self.size, self.key = count, size, key

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = index % len(COLOURS)
        name, colour = list(COLOURS.items())[label]
        noise = torch.randint(
            0, 30, (3, self.size, self.size), generator=torch.Generator().manual_seed(index)
        )
        image = (torch.tensor(colour)[:, None, None] + noise).float() / 128 - 1
        extra = {"text": tokenize(f"a {name} square"), "label": label}[self.key]
        sample = {"image": image, self.key: extra, "id": index, "path": f"{index}.png"}
        return {**sample, "is_padding": True} if index >= self.count else sample


class SquarePairs(BaseDataModule):
    """Pairs for training and retrieval, and labelled images for zero-shot classification.

    Args:
        root: Not used.
        batch_size: See `BaseDataModule`.
        num_workers: See `BaseDataModule`.
        image_size: Side of the images.
        count: Number of pairs.
        labelled: Whether there are labelled images.
        eval_batch_size: See `BaseDataModule`.
    """

    def __init__(
        self,
        root: str = "",
        batch_size: int = 8,
        num_workers: int = 0,
        image_size: int = 32,
        count: int = 32,
        labelled: bool = True,
        eval_batch_size: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, eval_batch_size)
        self.image_size, self.count, self.labelled = image_size, count, labelled

    @property
    def class_names(self) -> list[str]:
        return list(COLOURS) if self.labelled else []

    def tokenizer(self, text: str) -> Tensor:
        return tokenize(text)

    def setup(self, stage: str) -> None:
        self._datasets["train"] = Squares(self.count, self.image_size, "text")
        self._datasets["val"] = self._datasets["test"] = Squares(10, self.image_size, "text")
        self._datasets["labelled"] = Squares(12, self.image_size, "label")

    def val_dataloader(self):
        return [self.loader(split) for split in ("val", "labelled")[: 1 + self.labelled]]

    test_dataloader = val_dataloader
