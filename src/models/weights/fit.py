"""Match the tensors of an official file with a network, or report what differs.

Sources: prefixes and wrappers are those of the official loader. What depends on the network
(renamed parameters, heads for other classes, the dropped centre point) belongs to its modules, see
``match.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from src.errors import UserError
from src.models.weights.match import Match, PretrainedBackbone, shorten
from src.models.weights.names import official_names

WRAPPERS = ("module.", "model.", "student.", "network.", "_orig_mod.")
MASKED_MODELLING = (
    (r"(^|\.)dcnv3\.", r"\1"),
    (r"(^|\.)clip\.classifier_ln\.", r"\1fc_norm."),
    (r"(^|\.)clip\.classifier\.", r"\1head."),
)
"""Patterns on names of masked-modelling checkpoints, which hold a ``mask_token``, and new names."""


def match_tensors(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str, *, remap_22k: bool = True
) -> Match:
    """Find the tensor of the file for every entry of a network.

    Args:
        module: The network, on a real device; not changed.
        tensors: Tensors of the file by their names there, official or those of the network.
        source: Name of the file for messages.
        remap_22k: Use rows of a 21841-class head for 1000 classes.

    Returns:
        The match; complete for the backbone, and complete or absent for every other part.

    Raises:
        UserError: If the backbone or a part does not fit, or ``module`` is on the meta device.
    """
    targets = module.state_dict()
    if any(tensor.is_meta for tensor in targets.values()):
        raise UserError(
            "Weights cannot be loaded into a network on the meta device; materialise it first "
            "(to_empty and reset_parameters)."
        )
    backbones = {
        f"{name}." if name else "": child
        for name, child in module.named_modules()
        if isinstance(child, PretrainedBackbone)
    }
    names = official_names(module)
    accepted = {name: name for name in names} | {official: name for name, official in names.items()}
    aligned = _align(tensors, backbones, source)
    match = Match(source, {accepted[k]: v for k, v in aligned.items() if k in accepted}, remap_22k)
    match.unused = [k for k in aligned if k not in accepted]
    _check_kinds(match.state, targets, source)
    for name, child in module.named_modules():
        if adapt := getattr(child, "adapt_checkpoint", None):
            adapt(f"{name}." if name else "", match)
    official = {names[name]: tensor for name, tensor in targets.items()}
    for prefix, backbone in backbones.items():
        _check_backbone(prefix, backbone, match, targets, official, aligned)
    _check_parts(backbones, match, targets)
    return match


def _check_kinds(state: Mapping[str, Tensor], targets: Mapping[str, Tensor], source: str) -> None:
    """Reject empty tensors, and those of another kind of dtype or number of dimensions."""
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


def _align(
    tensors: Mapping[str, Tensor], backbones: Mapping[str, PretrainedBackbone], source: str
) -> dict[str, Tensor]:
    """Drop wrapper prefixes and give the backbone of the file the prefix it has in the network."""
    renamed = {re.sub(r"\.layer_scale([12])$", r".gamma\1", k): v for k, v in tensors.items()}
    if any(k.endswith("mask_token") for k in renamed):
        renamed = {_without_masked_modelling(k): v for k, v in renamed.items()}
    if not backbones:
        return renamed
    own_prefixes = list(backbones)
    anchor = backbones[own_prefixes[0]].checkpoint_anchor
    prefixes = [k.removesuffix(anchor) for k in renamed if k.endswith(anchor)]
    if not prefixes:
        raise UserError(
            f"{source} holds no InternImage weights: it has no {anchor}; its first entries are "
            f"{shorten(renamed)}."
        )
    for prefix in prefixes:
        wrapper = _wrapper(prefix)
        renamed = {k.removeprefix(wrapper): v for k, v in renamed.items()}
    found = {k.removesuffix(anchor) for k in renamed if k.endswith(anchor)}
    if len(own_prefixes) > 1 or own_prefixes[0] in found:
        return renamed
    old = next((p for p in ("", "backbone.") if p in found), min(found))
    moved = {own_prefixes[0] + k[len(old) :]: v for k, v in renamed.items() if k.startswith(old)}
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


def _check_backbone(
    prefix: str,
    backbone: PretrainedBackbone,
    match: Match,
    targets: Mapping[str, Tensor],
    official: Mapping[str, Tensor],
    aligned: Mapping[str, Tensor],
) -> None:
    inside = tuple(prefix + part for part in backbone.checkpoint_parts)
    missing = [k for k in targets if k.startswith(inside) and k not in match.state]
    left = [k for k in match.unused if k.startswith(inside)]
    wrong = [
        k for k, v in match.state.items() if k.startswith(inside) and v.shape != targets[k].shape
    ]
    if not (missing or left or wrong):
        return
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors are missing ({shorten(missing)})")
    if left:
        problems.append(f"{len(left)} are unexpected ({shorten(left)})")
    if wrong:
        first = wrong[0]
        problems.append(
            f"{len(wrong)} differ in shape ({first} is {tuple(match.state[first].shape)}, the "
            f"network has {tuple(targets[first].shape)})"
        )
    file_variant, file_text = backbone.describe_checkpoint(aligned, prefix)
    own_variant, own_text = backbone.describe_checkpoint(official, prefix)
    if file_variant is not None and file_variant != own_variant:
        advice = f"Build the network as {file_variant}, or give weights of the network's variant."
    else:
        advice = backbone.explain_mismatch(missing, left)
    raise UserError(
        f"{match.source} holds {file_text}, which does not fit the network, {own_text}: "
        f"{', '.join(problems)}. {advice}"
    )


def _check_parts(
    backbones: Mapping[str, PretrainedBackbone], match: Match, targets: Mapping[str, Tensor]
) -> None:
    """Accept parts outside the backbone that are complete or absent; report the absent ones."""
    parts: dict[str, list[str]] = {}
    for key in targets:
        prefix = _backbone_of(backbones, key)
        inside = backbones[prefix].checkpoint_parts if prefix in backbones else ()
        if not key.startswith(tuple(prefix + part for part in inside)):
            parts.setdefault(_part(prefix, key), []).append(key)
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
                f"{match.source} does not fit the part '{part}' of the network: missing "
                f"{shorten(missing)}; of another shape {shorten(wrong)}. Give weights of the "
                f"same network, or change its arguments to those of the file."
            )
    if absent:
        whose = "its" if len(absent) == 1 else "their"
        match.note(f"{match.source} has no {shorten(absent)}; {whose} initial values stay.")
    if match.unused:
        spare = dict.fromkeys(_part(_backbone_of(backbones, key), key) for key in match.unused)
        verb = "is" if len(spare) == 1 else "are"
        match.note(f"{match.source} also holds {shorten(spare)}, which {verb} not used.")


def _backbone_of(backbones: Mapping[str, PretrainedBackbone], key: str) -> str:
    """Prefix of the backbone that a name belongs to; empty if it belongs to none."""
    return next((prefix for prefix in backbones if key.startswith(prefix)), "")


def _part(prefix: str, key: str) -> str:
    """First name of a key, not counting the prefix of a backbone."""
    return key.removeprefix(prefix).split(".")[0]
