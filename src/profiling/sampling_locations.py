"""Sampling locations of DCNv3 and DCNv4, and effective receptive fields, for the notebooks.

Sampling locations as in the figures of InternImage (CVPR 2023, arXiv 2211.05778); effective
receptive field as defined by Luo et al., NeurIPS 2016 (arXiv 1701.04128).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.models.internimage.backbone import InternImageBackbone
from src.models.internimage.dcnv3 import DCNv3
from src.models.internimage.dcnv4 import DCNv4
from src.models.layers.channels_last import conv_nhwc


@dataclass
class Sampling:
    """Sampling locations of one DCNv3 or DCNv4 layer for every pixel of its feature map.

    Attributes:
        name: Name of the layer in the network.
        stride: Pixels of the image per cell of the feature map.
        positions: ``x, y`` in cells of the feature map, ``(H, W, G, P, 2)``; the centre of the
            first cell is 0.
        weights: Weights of the locations, ``(H, W, G, P)``; those of DCNv3 sum to 1 in each group.
    """

    name: str
    stride: float
    positions: Tensor
    weights: Tensor

    def in_image(self) -> Tensor:
        """The positions in pixels of the image, whose first pixel has its centre at 0."""
        return (self.positions + 0.5) * self.stride - 0.5


@torch.no_grad()
def sampling_points(network: nn.Module, image: Tensor) -> list[Sampling]:
    """Sampling locations of all DCNv3 and DCNv4 layers of a network for one image.

    Args:
        network: Network with such layers whose only input is an image, such as a backbone or a
            classifier.
        image: Prepared image of shape ``(1, 3, H, W)``.

    Returns:
        One entry per layer, in the order of execution.
    """
    found: list[Sampling] = []
    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, DCNv3 | DCNv4)]
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, inputs, name=name: found.append(
                _sampling(name, module, inputs[0], image.shape[-1])
            )
        )
        for name, layer in layers
    ]
    was_training = network.training
    try:
        network.eval()(image)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return found


def _sampling(name: str, layer: DCNv3 | DCNv4, x: Tensor, width: int) -> Sampling:
    _, rows, columns, _ = x.shape
    if isinstance(layer, DCNv4):
        offset, weights = layer.points_of(x)
    else:
        guide = layer.act(layer.dw_norm(conv_nhwc(layer.dw_conv, x)))
        offset, logits = layer._offset_and_mask(guide)
        weights = logits.unflatten(-1, (layer.groups, layer.num_points)).softmax(-1)
    offset = offset.reshape(rows, columns, layer.groups, layer.num_points, 2)
    weights = weights.reshape(rows, columns, layer.groups, layer.num_points)
    x_axis = torch.arange(columns, dtype=x.dtype)[None, :, None, None]
    y_axis = torch.arange(rows, dtype=x.dtype)[:, None, None, None]
    taps = _taps(layer).to(x)
    shifted = (taps + offset) * layer.offset_scale
    positions = torch.stack([x_axis + shifted[..., 0], y_axis + shifted[..., 1]], dim=-1)
    return Sampling(name, width / columns, positions, weights)


def _taps(layer: DCNv3 | DCNv4) -> Tensor:
    half, side = layer.kernel_size // 2, layer.kernel_size
    taps = torch.tensor([(i - half, j - half) for i in range(side) for j in range(side)])
    centre = len(taps) // 2
    return torch.cat([taps[:centre], taps[centre + 1 :]]) if layer.remove_center else taps


def follow_back(samplings: Sequence[Sampling], cell: tuple[int, int], group: int = 0) -> Tensor:
    """Sampling locations that a cell of the last layer depends on through several layers.

    Args:
        samplings: Layers of one stage in the order of execution.
        cell: Row and column in the feature map.
        group: Group to follow; layers with fewer groups use their last one.

    Returns:
        ``x, y`` in pixels of the image, ``(P ** len(samplings), 2)``.
    """
    rows, columns = samplings[-1].positions.shape[:2]
    points = torch.tensor([[float(cell[1]), float(cell[0])]])
    for sampling in reversed(samplings):
        x = points[:, 0].round().long().clamp(0, columns - 1)
        y = points[:, 1].round().long().clamp(0, rows - 1)
        groups = sampling.positions.shape[2]
        points = sampling.positions[y, x, min(group, groups - 1)].reshape(-1, 2)
    return (points + 0.5) * samplings[0].stride - 0.5


def effective_receptive_field(
    backbone: InternImageBackbone, images: Tensor, stage: int = -1
) -> Tensor:
    """Gradient of the middle cell of a feature map with respect to each pixel of the image.

    Args:
        backbone: The backbone.
        images: Prepared images, ``(N, 3, H, W)``; more give a smoother result.
        stage: Index of the stage.

    Returns:
        Positive gradient of the positive values of the cell, summed over channels and colours,
        averaged over images and divided by its maximum, ``(H, W)``.
    """
    images = images.detach().clone().requires_grad_()
    was_training = backbone.training
    try:
        feature = backbone.eval().forward_stages(images)[stage]  # (N, C, h, w)
    finally:
        backbone.train(was_training)
    # Only positive values, because the sum over all channels of a layer norm is constant.
    middle = feature[:, :, feature.shape[2] // 2, feature.shape[3] // 2].clamp(min=0).sum()
    (gradient,) = torch.autograd.grad(middle, images)
    field = gradient.clamp(min=0).sum(dim=1).mean(dim=0)
    return field / field.max().clamp(min=torch.finfo(field.dtype).tiny)
