"""Number of classes of a recipe or a run, for ``python -m src plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from src.cli.arguments import option
from src.errors import UserError
from src.runs import KEYWORDS
from src.serialization import read_entries

_PUBLIC = {"ClassificationTask": 1000, "DetectionTask": 80, "SegmentationTask": 150}


class ClassCount(NamedTuple):
    """A number of classes.

    Attributes:
        number: The number.
        is_assumed: Whether it is that of a public dataset, because the classes are not known.
    """

    number: int
    is_assumed: bool = False

    def __str__(self) -> str:
        """``3 classes``; an assumed number is called so."""
        advice = "assumed, as the dataset is not here; --num_classes gives another number"
        text = f"{self.number} class{'es' * (self.number != 1)}"
        return f"{text} ({advice})" if self.is_assumed else text


def class_count(config: Any, args: list[str], given: int | None) -> ClassCount:
    """Number of classes that ``fit`` would train, from the first source that has it.

    The sources are ``--num_classes``, the dataset, the checkpoint of a run, and the public dataset
    of the task.

    Args:
        config: Parsed settings.
        args: Arguments that they were parsed from, with ``--ckpt_path`` of a run.
        given: ``--num_classes``.

    Raises:
        UserError: If ``given`` is not positive, or the checkpoint cannot be read.
    """
    if given is not None:
        if given < 1:
            raise UserError(f"--num_classes: expected a positive number, got {given}.")
        return ClassCount(given)
    if (found := _of_dataset(config) or _of_checkpoint(option(args, "--ckpt_path"))) is not None:
        return ClassCount(found)
    return ClassCount(_PUBLIC.get(config.model.class_path.rpartition(".")[2], 1000), True)


def _of_dataset(config: Any) -> int | None:
    """Number of classes of the data, or ``None`` if they are not on this machine."""
    from lightning.pytorch.cli import instantiate_module

    from src.data.datamodules import BaseDataModule

    settings = config.data.init_args.as_dict() | {"_class_path": config.data.class_path}
    try:
        data = instantiate_module(BaseDataModule, settings)  # type: ignore[type-abstract]
        return int(data.num_classes) or None
    except (UserError, OSError):
        return None


def _of_checkpoint(path: str | None) -> int | None:
    """Number of classes of a checkpoint, or ``None`` if there is none or it does not say."""
    if path is None or path in KEYWORDS or not Path(path).exists():
        return None
    return len(read_entries(Path(path)).get("class_names") or []) or None
