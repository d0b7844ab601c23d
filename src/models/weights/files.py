"""Find and read the files that released InternImage and FlashInternImage weights come in.

These are ``.pth`` files (plain, or training checkpoints with a configuration object inside),
``.safetensors`` files, sharded safetensors with their index, folders that hold one of these, and
the names of published files on the Hugging Face hub; and the checkpoints and folders of runs.

Nothing in a file is executed: ``src.serialization`` reads it. ``fit.py`` interprets the tensors.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from src.errors import UserError
from src.models.weights.merging import merged_state
from src.runs import find_checkpoint, instead_of_best, is_run
from src.serialization import (
    NAME_LENGTH,
    Odd,
    odd_kind,
    read_json,
    read_weights,
    shard_names,
    shown,
    shown_repr,
)

logger = logging.getLogger(__name__)

HUB_REPO = "OpenGVLab/InternImage"
FLASH_REPO = "OpenGVLab/DCNv4"
HUB_FILES = (
    "internimage_t_1k_224",
    "internimage_s_1k_224",
    "internimage_b_1k_224",
    "internimage_l_22k_192to384",
    "internimage_l_22kto1k_384",
    "internimage_xl_22k_192to384",
    "internimage_xl_22kto1k_384",
    "internimage_h_jointto22k_384",
    "internimage_h_22kto1k_640",
    "internimage_h_22ktoinat18_384",
    "internimage_g_pretrainto22k_384",
    "internimage_g_22kto1k_512",
    "upernet_internimage_t_512_160k_ade20k",
    "upernet_internimage_s_512_160k_ade20k",
    "upernet_internimage_b_512_160k_ade20k",
    "upernet_internimage_l_640_160k_ade20k",
    "upernet_internimage_xl_640_160k_ade20k",
    "upernet_internimage_h_896_160k_ade20k",
    "mask2former_internimage_h_896_80k_cocostuff2ade20k",
    "mask2former_internimage_h_896_80k_cocostuff164k",
    "mask2former_internimage_h_512_40k_cocostuff164k_to_10k",
    "upernet_internimage_t_512x1024_160k_cityscapes",
    "upernet_internimage_s_512x1024_160k_cityscapes",
    "upernet_internimage_b_512x1024_160k_cityscapes",
    "upernet_internimage_l_512x1024_160k_cityscapes",
    "upernet_internimage_xl_512x1024_160k_cityscapes",
    "upernet_internimage_l_512x1024_160k_mapillary2cityscapes",
    "upernet_internimage_xl_512x1024_160k_mapillary2cityscapes",
    "upernet_internimage_l_512x1024_80k_mapillary",
    "upernet_internimage_xl_512x1024_80k_mapillary",
    "segformer_internimage_l_512x1024_160k_mapillary2cityscapes",
    "segformer_internimage_xl_512x1024_160k_mapillary2cityscapes",
    "segformer_internimage_l_512x1024_80k_mapillary",
    "segformer_internimage_xl_512x1024_80k_mapillary",
    "mask2former_internimage_h_1024x1024_80k_mapillary2cityscapes",
    "mask2former_internimage_h_896x896_80k_mapillary",
    "mask2former_internimage_h_480_40k_pascal_context_59",
    "mask2former_internimage_h_480_40k_nyu",
    "mask_rcnn_internimage_t_fpn_1x_coco",
    "mask_rcnn_internimage_t_fpn_3x_coco",
    "mask_rcnn_internimage_s_fpn_1x_coco",
    "mask_rcnn_internimage_s_fpn_3x_coco",
    "mask_rcnn_internimage_b_fpn_1x_coco",
    "mask_rcnn_internimage_b_fpn_3x_coco",
    "cascade_internimage_l_fpn_1x_coco",
    "cascade_internimage_l_fpn_3x_coco",
    "cascade_internimage_xl_fpn_1x_coco",
    "cascade_internimage_xl_fpn_3x_coco",
    "dino_4scale_internimage_t_1x_coco",
    "dino_4scale_internimage_l_1x_coco_layer_wise_lr",
    "dino_4scale_internimage_l_1x_coco_0.1x_backbone_lr",
    "dino_4scale_internimage_h_objects365_coco",
    "dino_4scale_internimage_g_objects365_coco",
    "dino_4scale_cbinternimage_h_objects365_80classes",
    "dino_4scale_cbinternimage_h_objects365_20classes",
    "dino_4scale_cbinternimage_h_objects365_coco",
    "dino_4scale_cbinternimage_h_objects365_lvis",
    "dino_4scale_cbinternimage_h_objects365_openimages",
    "dino_4scale_cbinternimage_h_objects365_voc0712",
    "flash_intern_image_t_1k_224",
    "flash_intern_image_s_1k_224",
    "flash_intern_image_b_1k_224",
    "flash_intern_image_l_22k_384",
    "flash_internimage_l_22kto1k_384",
    "mask_rcnn_flash_internimage_t_fpn_1x_coco",
    "mask_rcnn_flash_internimage_t_fpn_3x_coco",
    "mask_rcnn_flash_internimage_s_fpn_1x_coco",
    "mask_rcnn_flash_internimage_s_fpn_3x_coco",
    "mask_rcnn_flash_internimage_b_fpn_1x_coco",
    "mask_rcnn_flash_internimage_b_fpn_3x_coco",
    "cascade_flash_internimage_l_fpn_1x_coco",
    "cascade_flash_internimage_l_fpn_3x_coco",
    "dino_4scale_flash_internimage_t_1x_coco",
    "dino_4scale_flash_internimage_s_1x_coco",
    "dino_4scale_flash_internimage_b_1x_coco",
    "dino_4scale_flash_internimage_l_1x_coco",
    "upernet_flash_internimage_t_512_160k_ade20k",
    "upernet_flash_internimage_s_512_160k_ade20k",
    "upernet_flash_internimage_b_512_160k_ade20k",
    "upernet_flash_internimage_l_640_160k_ade20k",
    "mask2former_flash_internimage_t_512_160k_ade20k_ss",
    "mask2former_flash_internimage_s_640_160k_ade20k_ss",
    "mask2former_flash_internimage_b_640_160k_ade20k_ss",
    "mask2former_flash_internimage_l_640_160k_ade20k_ss",
)
"""Names of published files, without ``.pth``."""

_CONTAINERS = ("model", "module", "state_dict", "model_state_dict", "weights", "net")
_EMA_CONTAINERS = ("model_ema", "state_dict_ema", "ema")
_NESTING = 3  # containers in containers, as in {"model": {"state_dict": ...}}
_FOLDER_FILES = ("model.safetensors", "model.safetensors.index.json")


def resolve(source: str | Path) -> Path:
    """Turn a path or a hub name into a local file, downloading it if need be.

    An existing path has priority over a hub name of the same spelling.

    Args:
        source: Local file or folder; the folder of a run, whose best checkpoint is used; a
            published file (``"internimage_t_1k_224"``, with or without ``.pth``); or a hub
            repository (``"OpenGVLab/internimage_t_1k_224"``).

    Returns:
        Path of a file that `read` understands.

    Raises:
        UserError: If there is no such file, or the hub cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _file_in_folder(path)
    if path.is_file():
        return path
    name = str(source)
    stem = name.removesuffix(".pth")
    if stem in HUB_FILES:
        return download(hub_repository(stem), f"{stem}.pth")
    if name.startswith("OpenGVLab/") and name.count("/") == 1:
        return _download_repository(name)
    close = difflib.get_close_matches(stem, HUB_FILES, n=3)
    hint = f" Published names like it: {', '.join(close)}." if close else ""
    raise UserError(
        f"There is no weight file '{source}'.{hint} Give a .pth or .safetensors file, a folder "
        "with model.safetensors, the folder of a run, a hub repository such as "
        "OpenGVLab/internimage_t_1k_224, or a name of docs/model_zoo.md."
    )


def hub_repository(name: str) -> str:
    """Hub repository of a published file."""
    return FLASH_REPO if "flash" in name else HUB_REPO


def read(path: Path) -> dict[str, Any]:
    """Read a file as it is, on the CPU.

    Args:
        path: A ``.pth``, ``.safetensors`` or ``.safetensors.index.json`` file.

    Returns:
        The content, with all tensors in the file's own dtype.

    Raises:
        UserError: If the file is damaged, incomplete or of another format, or contains unsupported
            data.
    """
    return read_weights(path)


def tensors_of(
    content: Mapping[str, Any], source: str, prefer_ema: bool = False
) -> dict[str, Tensor]:
    """Take the state dict out of its container.

    Args:
        content: What `read` returned, or a state dict.
        source: Name of the file for messages.
        prefer_ema: Take the EMA weights where the file has both.

    Returns:
        The tensors by their names in the file.

    Raises:
        UserError: If there are no tensors, or one is of a kind that cannot be a weight.
    """
    order = _EMA_CONTAINERS + _CONTAINERS if prefer_ema else _CONTAINERS + _EMA_CONTAINERS
    tensors = _state_dict_in(content, order, _NESTING)
    if not tensors:
        raise UserError(
            f"{source} holds no tensors; its entries are {_shorten(content)}. Expected a state "
            f"dict, raw or under {', '.join(_CONTAINERS)} or model_ema."
        )
    for name, tensor in tensors.items():
        kind = tensor.kind if isinstance(tensor, Odd) else odd_kind(tensor)
        # Shapes alone, which callers can give, are enough to say which network they are of.
        if kind is not None and not (isinstance(tensor, Tensor) and tensor.is_meta):
            raise UserError(
                f"The tensor {name} of {source} is {kind}; expected a dense real tensor."
            )
        if not name.isprintable() or len(name) > NAME_LENGTH:
            raise UserError(f"{source} holds a tensor with the name {shown_repr(name)}.")
    return merged_state(tensors)


def class_names_of(content: Mapping[str, Any], source: str) -> tuple[str, ...]:
    """Names of the classes of weights, where they are saved with them.

    Checkpoints of a training run hold them; beside exported weights they are in ``config.json``.

    Args:
        content: What `read` returned.
        source: The file it came from.
    """
    names = content.get("class_names")
    config = Path(source).parent / "config.json"
    if names is None and Path(source).name in _FOLDER_FILES and config.is_file():
        try:
            names = read_json(config, "description").get("class_names")
        except UserError:  # not a description that this project wrote
            return ()
    is_list = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list and names is not None else ()


def _state_dict_in(
    content: Mapping[str, Any], order: Sequence[str], nesting: int
) -> dict[str, Any]:
    """The tensors of the first container in ``content`` that holds some, else its own."""
    own = {str(name): value for name, value in content.items() if isinstance(value, Tensor | Odd)}
    if nesting == 0:
        return own
    for name in order:
        inner = content.get(name)
        tensors = _state_dict_in(inner, order, nesting - 1) if isinstance(inner, Mapping) else {}
        # A single tensor beside a container is a metric; a single one inside is no state dict.
        if tensors and len(tensors) >= len(own):
            return tensors
    return own


def _shorten(names: Any, limit: int = 5) -> str:
    names = [shown(name) for name in names]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more


def _file_in_folder(folder: Path) -> Path:
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    files = sorted(p for p in folder.iterdir() if p.suffix in {".pth", ".safetensors"})
    if len(files) == 1:
        return files[0]
    if not files and is_run(folder):
        return _checkpoint_of_run(folder)
    if not files and any(folder.glob("*.onnx")):
        raise UserError(
            f"The folder {folder} has ONNX files, but no weights that can be loaded; export with"
            " --format onnx safetensors, or give the folder of the run."
        )
    raise UserError(
        f"The folder {folder} holds {len(files)} weight files ({_shorten(p.name for p in files)}) "
        f"where model.safetensors, its index, or exactly one .pth or .safetensors is expected; "
        f"name the file itself."
    )


def _checkpoint_of_run(folder: Path) -> Path:
    path = find_checkpoint(folder)
    if (note := instead_of_best(folder, path)) is not None:
        logger.warning(note)
    if path.is_dir():
        raise UserError(
            f"The checkpoint of {folder}, {path}, is sharded; merge it with `python -m src"
            f" consolidate {path}`, and give the new file."
        )
    return path


def is_hub_reachable(seconds: float = 3.0) -> bool:
    """Whether the hub answers at all; its client would retry for half a minute.

    Args:
        seconds: How long to wait for an answer.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=seconds)
    except Exception:  # the hub client raises several unrelated classes
        return False
    return True


class _AbsentFileError(UserError):
    """The hub has the repository, but not the file."""


def download(repo: str, filename: str) -> Path:
    """Path of a file of a hub repository, which is downloaded unless it is in the cache.

    Raises:
        UserError: If the file is not in the cache and cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        offline = not is_hub_reachable()
        if not offline:
            _announce(repo, filename)
        return Path(hf_hub_download(repo, filename, local_files_only=offline))
    except Exception as error:  # the hub client raises several unrelated classes
        is_absent = isinstance(error, EntryNotFoundError)
        is_absent &= not isinstance(error, LocalEntryNotFoundError)  # not cached
        # Without the chain of the client's errors, of which the last one is named.
        raise (_AbsentFileError if is_absent else UserError)(
            f"{filename} is not on this machine and could not be downloaded from "
            f"https://huggingface.co/{repo} ({problem(error)}). Fetch "
            f"https://huggingface.co/{repo}/resolve/main/{filename} where there is a "
            f"connection, keep the name of the file, and give its path in place of the name: to "
            f"--model.weights, prepare --weights, or Pretrained.from_pretrained."
        ) from None


def problem(error: Exception) -> str:
    """Why the hub client failed, in a few words: no connection, or the class of its error."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    is_offline = isinstance(error, LocalEntryNotFoundError)
    return "no connection" if is_offline else type(error).__name__


def _announce(repo: str, filename: str) -> None:
    """Log what is downloaded and its size, unless the file is in the cache."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repo, filename), str):
        return
    size = get_hf_file_metadata(hf_hub_url(repo, filename)).size
    text = "" if size is None else f" ({size / 1e6:,.0f} MB)"
    logger.warning(f"Downloading {filename}{text} from https://huggingface.co/{repo}")


def _download_repository(repo: str) -> Path:
    try:
        return download(repo, "model.safetensors")
    except _AbsentFileError:
        index = download(repo, "model.safetensors.index.json")
    for shard in shard_names(index):
        download(repo, shard)
    return index
