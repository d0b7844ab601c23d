"""Training in bfloat16 with norms that write 16 bits, against norms that write float32."""

import pytest
import torch
import torch.nn.functional as F

from src.models import InternImage
from src.models.internimage.blocks import Block

TOLERANCE = 0.05
"""Largest difference of the loss, averaged over ten steps. It falls from ln 4 = 1.39."""


def curve(float32_norms, steps):
    """Loss of each step of learning where in the image a bright square is."""
    torch.manual_seed(0)
    network = InternImage(
        4, channels=16, depths=[2, 2, 2, 2], groups=[2, 4, 8, 16], float32_norms=float32_norms
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        labels = torch.randint(4, (16,))
        images = torch.randn(16, 3, 64, 64)
        for image, label in zip(images, labels.tolist(), strict=True):
            row, column = 32 * (label // 2), 32 * (label % 2)
            image[:, row : row + 32, column : column + 32] += 0.5
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_same_curve():
    lean, wide = (curve(kept, 60).view(-1, 10).mean(1) for kept in (False, True))
    assert wide[-1] < 0.7 * wide[0]  # it has learned something
    assert (lean - wide).abs().max() <= TOLERANCE


@pytest.mark.parametrize("checkpointing", [False, True])
def test_parameters_cast_together_as_on_a_gpu(monkeypatch, checkpointing):
    """The same gradients as with autocast's own casts; frozen parameters get none."""
    torch.manual_seed(0)
    network = InternImage(
        4,
        channels=16,
        depths=[1, 2],
        groups=[2, 4],
        layer_scale=0.5,
        grad_checkpointing=checkpointing,
    )
    frozen = network.levels[1].blocks[0].mlp.fc1.weight.requires_grad_(False)
    images = torch.randn(4, 3, 64, 64)

    def gradients():
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(network(images), torch.arange(4))
        loss.backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    names = list(network.state_dict())
    expected = gradients()
    monkeypatch.setattr(Block, "_casts_together", lambda self, device_type: True)
    together = gradients()
    assert frozen.grad is None
    assert list(network.state_dict()) == names
    for grad, other in zip(together, expected, strict=True):
        assert grad.dtype == torch.float32
        # Norms and scales are rounded to 8 bits as well, in every one of the few layers.
        assert (grad - other).norm() <= 0.1 * other.norm() + 1e-6
