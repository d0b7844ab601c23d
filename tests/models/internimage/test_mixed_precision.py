"""Training in bfloat16 with norms that write 16 bits, against norms that write float32."""

import pytest
import torch
import torch.nn.functional as F

from src.models import InternImage

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


@pytest.mark.slow
def test_same_curve():
    lean, wide = (curve(kept, 60).view(-1, 10).mean(1) for kept in (False, True))
    assert wide[-1] < 0.7 * wide[0]  # it has learned something
    assert (lean - wide).abs().max() <= TOLERANCE
