"""Fit the tensors of an official file to a network, or say why they do not fit.

Sources: prefixes, head remapping and the dropped centre rows are those of the official loader; the
22k-to-1k classes follow from the public ImageNet synset tables in timm with one exception, see
`indices_22k_to_1k`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

from src.errors import UserError
from src.models.internimage.architectures import ARCHITECTURES
from src.models.internimage.backbone import InternImageBackbone
from src.models.internimage.blocks import Block
from src.models.internimage.classifier import InternImage
from src.models.internimage.dcnv3 import DCNv3
from src.models.layers.conv import ClassOutput
from src.models.segmentation.head import ClassConv2d
from src.models.weights.names import official_names

ANCHOR = "patch_embed.conv1.weight"
TRUNK = ("patch_embed.", "levels.")
WRAPPERS = ("module.", "model.", "student.", "network.", "_orig_mod.")
MASKED_MODELLING = (
    (r"(^|\.)dcnv3\.", r"\1"),
    (r"(^|\.)clip\.classifier_ln\.", r"\1fc_norm."),
    (r"(^|\.)clip\.classifier\.", r"\1head."),
)
"""Patterns on names of masked-modelling checkpoints, which hold a ``mask_token``, and our names."""


@dataclass
class Match:
    """Tensors that fit a network.

    Attributes:
        state: Part of a state dict of the network, in the shapes of the network.
        fresh: Names of the network that keep their values.
        unused: Names of the file without a place.
        notes: Sentences for the user.
    """

    state: dict[str, Tensor]
    fresh: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@cache
def indices_22k_to_1k() -> tuple[int, ...]:
    """Rows of a 21841-class head that belong to the 1000 classes, in their order.

    A class of ImageNet-1k is found in ImageNet-22k by its WordNet synset. One has no class of its
    own there: the teddy bear (850, n04399382) takes the row of the teapot (n04398044), as
    officially.
    """
    from timm.data.imagenet_info import ImageNetInfo

    row = {synset: i for i, synset in enumerate(ImageNetInfo("imagenet-22k").label_names())}
    renamed = {"n04399382": "n04398044"}
    names = ImageNetInfo("imagenet-1k").label_names()
    return tuple(row[renamed.get(synset, synset)] for synset in names)


def match_tensors(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str, *, remap_22k: bool = True
) -> Match:
    """Find the tensor of the file for every entry of a network.

    Args:
        module: The network, on a real device; not changed.
        tensors: Tensors of the file by their names there, official or ours.
        source: Name of the file for messages.
        remap_22k: Use rows of a 21841-class head for 1000 classes.

    Returns:
        The match; complete for the trunk, and complete or absent for every other part.

    Raises:
        UserError: If the trunk or a part does not fit, or ``module`` is on the meta device.
    """
    targets = module.state_dict()
    if any(tensor.is_meta for tensor in targets.values()):
        raise UserError(
            "Weights cannot be loaded into a network on the meta device; materialise it first "
            "(to_empty and reset_parameters)."
        )
    trunks = [
        f"{name}." if name else ""
        for name, child in module.named_modules()
        if isinstance(child, InternImageBackbone)
    ]
    names = official_names(module)
    places = {ours: ours for ours in names} | {official: ours for ours, official in names.items()}
    aligned = _align(tensors, trunks, source)
    match = Match({places[k]: v for k, v in aligned.items() if k in places})
    match.unused = [k for k in aligned if k not in places]
    _check_kinds(match.state, targets, source)
    _adapt(module, match, source, remap_22k)
    official = {names[ours]: tensor for ours, tensor in targets.items()}
    for trunk in trunks:
        _check_trunk(trunk, match, targets, official, aligned, source)
    _check_parts(trunks, match, targets, source)
    return match


def _check_kinds(state: Mapping[str, Tensor], targets: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that would be converted to another kind of number, or have no rows."""
    for name, tensor in state.items():
        target = targets[name]
        if tensor.is_floating_point() != target.is_floating_point():
            raise UserError(
                f"The tensor {name} of {source} has values of type {tensor.dtype}, and the network"
                f" has {target.dtype} there."
            )
        if tensor.dim() != target.dim() or (target.numel() and not tensor.numel()):
            raise UserError(
                f"The tensor {name} of {source} has the shape {tuple(tensor.shape)}, and the"
                f" network has {tuple(target.shape)} there."
            )


def _align(tensors: Mapping[str, Tensor], trunks: list[str], source: str) -> dict[str, Tensor]:
    """Drop wrapper prefixes and move the file's trunk to where the network has its own."""
    renamed = {re.sub(r"\.layer_scale([12])$", r".gamma\1", k): v for k, v in tensors.items()}
    if any(k.endswith("mask_token") for k in renamed):
        renamed = {_without_masked_modelling(k): v for k, v in renamed.items()}
    if not trunks:
        return renamed
    prefixes = [k.removesuffix(ANCHOR) for k in renamed if k.endswith(ANCHOR)]
    if not prefixes:
        raise UserError(
            f"{source} holds no InternImage weights: it has no {ANCHOR}; its first entries are "
            f"{_shorten(renamed)}."
        )
    for prefix in prefixes:
        wrapper = _wrapper(prefix)
        renamed = {k.removeprefix(wrapper): v for k, v in renamed.items()}
    found = {k.removesuffix(ANCHOR) for k in renamed if k.endswith(ANCHOR)}
    if len(trunks) > 1 or trunks[0] in found:
        return renamed
    old = next((p for p in ("", "backbone.") if p in found), min(found))
    moved = {trunks[0] + k[len(old) :]: v for k, v in renamed.items() if k.startswith(old)}
    return {k: v for k, v in renamed.items() if not k.startswith(old)} | moved


def _without_masked_modelling(name: str) -> str:
    for pattern, replacement in MASKED_MODELLING:
        name = re.sub(pattern, replacement, name)
    return name


def _wrapper(prefix: str) -> str:
    rest = prefix
    while found := next((w for w in WRAPPERS if rest.startswith(w)), ""):
        rest = rest.removeprefix(found)
    return prefix.removesuffix(rest) if rest else prefix


def _adapt(module: nn.Module, match: Match, source: str, remap_22k: bool) -> None:
    """Change tensors that are meant differently but can be used, and note it."""
    state = match.state
    has_gammas = any(key.endswith((".gamma1", ".gamma2")) for key in state)
    dropped = filled = False
    for name, child in module.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(child, DCNv3) and child.remove_center:
            dropped |= _drop_center(child, prefix, state)
        elif isinstance(child, Block) and child.layer_scale == 1.0 and not has_gammas:
            filled = True
            for gamma in ("gamma1", "gamma2"):
                state[prefix + gamma] = torch.ones(child.norm1.normalized_shape)
        elif isinstance(child, InternImageBackbone):
            _adapt_image_channels(child, prefix, match, source)
            if isinstance(child, InternImage):
                _fit_classes(child, prefix, match, source, remap_22k)
        elif isinstance(child, (ClassConv2d, ClassOutput)):
            _fit_class_outputs(child, prefix, match, source)
    if dropped:
        match.notes.append(f"{source} samples the centre; its rows for the centre are left out.")
    if filled:
        match.notes.append(f"{source} has no layer scale; it starts at 1.0, the same function.")


def _drop_center(dcn: DCNv3, prefix: str, state: dict[str, Tensor]) -> bool:
    points = dcn.kernel_size**2
    dropped = False
    for part, per_point in (("offset", 2), ("mask", 1)):
        rows = torch.arange(dcn.groups * points * per_point)
        kept = rows[rows // per_point % points != points // 2]
        for key in (f"{prefix}{part}.weight", f"{prefix}{part}.bias"):
            if key in state and len(state[key]) == len(rows):
                state[key] = state[key][kept]
                dropped = True
    return dropped


def _adapt_image_channels(
    backbone: InternImageBackbone, prefix: str, match: Match, source: str
) -> None:
    weight = match.state.get(prefix + ANCHOR)
    if weight is None:
        return
    in_chans = backbone.patch_embed.conv1.in_channels
    if weight.shape[1] == 3 and in_chans != 3:
        match.state[prefix + ANCHOR] = adapt_input_conv(in_chans, weight)
        match.notes.append(
            f"{source} is for 3 image channels; its first convolution is repeated for {in_chans}."
        )


def _fit_classes(
    network: InternImage, prefix: str, match: Match, source: str, remap_22k: bool
) -> None:
    keys = (f"{prefix}head.weight", f"{prefix}head.bias")
    if network.num_classes == 0 or not all(key in match.state for key in keys):
        return
    rows = len(match.state[keys[0]])
    if rows == network.num_classes:
        return
    if remap_22k and rows == 21841 and network.num_classes == 1000:
        index = torch.tensor(indices_22k_to_1k())
        match.state |= {key: match.state[key][index] for key in keys}
        match.notes.append(
            f"{source} has 21841 classes; the head takes the rows of the 1000 classes of ImageNet."
        )
        return
    own = network.head.state_dict()
    match.state |= {key: own[key.rpartition(".")[2]] for key in keys}
    match.fresh += keys
    match.notes.append(
        f"{source} has {rows} classes, the network {network.num_classes}: the head starts fresh."
    )


def _fit_class_outputs(layer: Any, prefix: str, match: Match, source: str) -> None:
    rows, kind = len(layer.weight), "class outputs" if isinstance(layer, ClassOutput) else "classes"
    own = {f"{prefix}{key}": value for key, value in layer.state_dict().items()}
    given = {key: match.state[key] for key in own if key in match.state}
    weight = given.get(f"{prefix}weight")
    if weight is None or weight.shape[1:] != layer.weight.shape[1:]:
        return
    if len(given) == len(own) and len(weight) != rows:
        match.state |= own
        match.fresh += own
        match.notes.append(
            f"{source} has {len(weight)} {kind}, the network {rows}: "
            f"{prefix.removesuffix('.')} starts fresh."
        )


def _check_trunk(
    trunk: str,
    match: Match,
    targets: Mapping[str, Tensor],
    official: Mapping[str, Tensor],
    aligned: Mapping[str, Tensor],
    source: str,
) -> None:
    inside = tuple(trunk + part for part in TRUNK)
    missing = [k for k in targets if k.startswith(inside) and k not in match.state]
    left = [k for k in match.unused if k.startswith(inside)]
    wrong = [
        k for k, v in match.state.items() if k.startswith(inside) and v.shape != targets[k].shape
    ]
    if not (missing or left or wrong):
        return
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors are missing ({_shorten(missing)})")
    if left:
        problems.append(f"{len(left)} have no place ({_shorten(left)})")
    if wrong:
        first = wrong[0]
        problems.append(
            f"{len(wrong)} differ in shape ({first} is {tuple(match.state[first].shape)}, the "
            f"network has {tuple(targets[first].shape)})"
        )
    file_variant, file_text = _describe(aligned, trunk)
    own_variant, own_text = _describe(official, trunk)
    raise UserError(
        f"{source} holds {file_text}, which does not fit the network, {own_text}: "
        f"{', '.join(problems)}. {_hint(file_variant, own_variant, missing, left)}"
    )


def _describe(tensors: Mapping[str, Tensor], trunk: str) -> tuple[str | None, str]:
    """Name the variant that tensors look like, judging by width and depths."""
    stem = tensors.get(f"{trunk}patch_embed.conv2.weight")
    width = 0 if stem is None else len(stem)
    blocks = re.compile(re.escape(trunk) + r"levels\.(\d+)\.blocks\.(\d+)\.")
    depths: dict[int, int] = {}
    for found in filter(None, map(blocks.match, tensors)):
        level, block = int(found[1]), int(found[2])
        depths[level] = max(depths.get(level, 0), block + 1)
    shape = tuple(depths[level] for level in sorted(depths))
    text = f"{width} channels, depths {'/'.join(map(str, shape))}"
    for variant, arguments in ARCHITECTURES.items():
        if (arguments["channels"], arguments["depths"]) == (width, shape):
            return variant, f"{variant} ({text})"
    return None, f"an InternImage of {text}"


def _hint(
    file_variant: str | None, own_variant: str | None, missing: list[str], left: list[str]
) -> str:
    if file_variant is not None and file_variant != own_variant:
        return f"Build the network as {file_variant}, or give weights of the network's own variant."
    gammas = (".gamma1", ".gamma2")
    if left and all(key.endswith(gammas) for key in left):
        return "Set layer_scale to 1.0 to keep the scales of the file."
    if missing and all(key.endswith(gammas) for key in missing):
        return "Set layer_scale to null, or to 1.0 for scales that start as the same function."
    return (
        "Compare channels, depths, groups, post_norm, res_post_norm, layer_scale, dw_kernel_size, "
        "level2_post_norm_block_ids and center_feature_scale with the configuration of the file."
    )


def _check_parts(
    trunks: list[str], match: Match, targets: Mapping[str, Tensor], source: str
) -> None:
    """Accept parts outside the trunk that are complete or absent; name the absent ones."""
    parts: dict[str, list[str]] = {}
    for key in targets:
        trunk = next((t for t in trunks if key.startswith(t)), "")
        if not key.startswith(tuple(trunk + part for part in TRUNK)):
            parts.setdefault(_part(trunks, key), []).append(key)
    absent = []
    for part, keys in parts.items():
        missing = [k for k in keys if k not in match.state]
        match.fresh += missing
        if len(missing) == len(keys):
            absent.append(part)
            continue
        # The batch counter of batch norm is absent from some converted files and changes nothing.
        missing = [k for k in missing if not k.endswith("num_batches_tracked")]
        wrong = [k for k in keys if k in match.state and match.state[k].shape != targets[k].shape]
        if missing or wrong:
            raise UserError(
                f"{source} does not fit the part '{part}' of the network: missing "
                f"{_shorten(missing)}; of another shape {_shorten(wrong)}. Give weights of the "
                f"same network, or change its arguments to those of the file."
            )
    if absent:
        match.notes.append(f"{source} has no {_shorten(absent)}; the start values stay.")
    if match.unused:
        spare = dict.fromkeys(_part(trunks, key) for key in match.unused)
        match.notes.append(f"{source} also holds {_shorten(spare)}, which is not used.")


def _part(trunks: list[str], key: str) -> str:
    """First name of a key, not counting the prefix of a trunk."""
    trunk = next((t for t in trunks if key.startswith(t)), "")
    return key.removeprefix(trunk).split(".")[0]


def _shorten(names: Iterable[str], limit: int = 4) -> str:
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return (", ".join(listed[:limit]) or "none") + more
