"""Loading of official weights, and conversion to official names.

`load_official` takes any released file or hub name into any network of this project, `to_official`
gives a state dict that the official code loads. ``files.py`` finds and reads files, ``names.py``
translates names, ``fit.py`` fits the tensors to the network.

Weights are not loaded in part: a backbone that does not fit is refused with a list, and everything
that is not taken from the file is named in the report and logged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from src.distributed import load_whole
from src.errors import UserError
from src.models.weights import files
from src.models.weights.fit import match_tensors
from src.models.weights.names import official_names
from src.serialization import refuse_not_finite

logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class LoadReport:
    """Report of `load_official`; `str` gives counts, the fields list parameter names.

    Attributes:
        source: File or object that the weights came from.
        loaded: Parameters of the network that were loaded from the file.
        fresh: Parameters of the network that keep their initial values.
        unused: Parameters of the file that the network does not have.
        notes: Messages for the user, which have been logged.
        class_names: Names of the classes in label order, if the source contains them.
    """

    source: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]
    class_names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        counts = (f"{name}={len(getattr(self, name))}" for name in ("loaded", "fresh", "unused"))
        return f"LoadReport({self.source!r}, {', '.join(counts)})"


def to_official(module: nn.Module) -> dict[str, Tensor]:
    """State dict of a network under the official names.

    Args:
        module: Any network of this project; not changed.

    Returns:
        Tensors that share memory with the parameters, in the order of ``module.state_dict()``.
    """
    names = official_names(module)
    return {names[name]: tensor.detach() for name, tensor in module.state_dict().items()}


def load_official(
    module: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    prefer_ema: bool = False,
    remap_22k: bool = True,
) -> LoadReport:
    """Load released weights into a network, converting dtype and names.

    A classifier of 1000 classes takes the matching rows of a 21841-class head. A head with any
    other number of classes, and every part of the network that the file does not have, keeps its
    initial values; this is logged. The backbone must fit completely.

    Args:
        module: The network, on a real device; loaded in place.
        source: Local file or folder, hub name (see `files.resolve`), or a state dict.
        prefer_ema: Take the EMA weights if the file has both kinds.
        remap_22k: Use rows of a 21841-class head for 1000 classes.

    Returns:
        What was loaded and what was not.

    Raises:
        UserError: If the file cannot be found or read, or does not fit.
    """
    if isinstance(source, Mapping):
        name, content = "the given state dict", dict(source)
    else:
        path = files.resolve(source)
        name, content = str(path), files.read(path)
    tensors = files.tensors_of(content, name, prefer_ema)
    match = match_tensors(module, tensors, name, remap_22k=remap_22k)
    given = {k: v for k, v in match.state.items() if k not in match.fresh}
    meta = next((key for key, tensor in given.items() if tensor.is_meta), None)
    if meta is not None:
        raise UserError(f"The tensor {meta} of {name} is on the meta device and has no values.")
    refuse_not_finite(given, name)
    load_whole(module.state_dict(), given)
    for note in match.notes:
        logger.warning(note)
    return LoadReport(
        source=name,
        loaded=tuple(key for key in match.state if key not in match.fresh),
        fresh=tuple(match.fresh),
        unused=tuple(match.unused),
        notes=tuple(match.notes),
        class_names=files.class_names_of(content, name),
    )


def convert_state_dict(state_dict: Mapping[str, Any], module: nn.Module) -> dict[str, Tensor]:
    """Turn the content of an official file into a complete state dict of ``module``.

    Args:
        state_dict: Content of the file.
        module: Network that the result is for; its own values fill what the file does not have.

    Returns:
        State dict with exactly the keys of ``module``.

    Raises:
        UserError: As in `load_official`.
    """
    tensors = files.tensors_of(state_dict, "the checkpoint")
    match = match_tensors(module, tensors, "the checkpoint")
    for note in match.notes:
        logger.warning(note)
    return {**module.state_dict(), **match.state}
