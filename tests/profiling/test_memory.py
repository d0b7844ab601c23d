"""The planner's figures against the peak of a real step on the CPU."""

from functools import partial

import pytest
import torch

from src.models import DINO, InternImage, InternImageBackbone, MaskRCNN
from src.models.detection import Detector
from src.ops import fused
from src.profiling.memory import extrapolate, measure_step, omitted_part
from src.profiling.profile import count_macs
from tests.allocations import peak_allocation

TINY = {"channels": 16, "depths": (1, 1, 2, 1), "groups": (1, 2, 4, 8)}


def tiny() -> InternImage:
    return InternImage(num_classes=10, **TINY)


def test_a_larger_batch_follows_from_two_small_ones() -> None:
    two, three, six = (measure_step(tiny, (64, 64), batch) for batch in (2, 3, 6))
    assert two.gradients == six.gradients == 4 * sum(p.numel() for p in tiny().parameters())
    for share in (0.0, 0.5, 1.0):
        assert extrapolate(two, three, 6).peak(share) == pytest.approx(six.peak(share), rel=0.02)
    assert extrapolate(two, three, 6).operations == pytest.approx(six.operations, rel=0.01)


def test_split_gradients_and_checkpoints_save_memory() -> None:
    plain = measure_step(tiny, (96, 96), 2, checkpointing=False)
    checkpointed = measure_step(tiny, (96, 96), 2, checkpointing=True)
    assert checkpointed.peak() < plain.peak()
    assert checkpointed.operations > plain.operations
    assert plain.peak(0.0) <= plain.peak(0.5) <= plain.peak(1.0) <= plain.peak(accumulates=True)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_mixed_precision_needs_less(checkpointing: bool) -> None:
    full, mixed, half = (
        measure_step(tiny, (96, 96), 4, precision=name, checkpointing=checkpointing).peak(0.0)
        for name in ("32-true", "bf16-mixed", "bf16-true")
    )
    assert half < mixed < full


class BackboneOnly(Detector):
    """A detector that says nothing to the planner but its feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = InternImageBackbone(**TINY)

    def extract_features(self, image: torch.Tensor) -> list[torch.Tensor]:
        return self.backbone(image)


def mask_rcnn(regions: int) -> MaskRCNN:
    small = {"num_classes": 3, "channels": 16, "fc_channels": 32}
    backbone = partial(InternImageBackbone, **TINY)
    return MaskRCNN(backbone=backbone, box_batch_size_per_image=regions, **small)


def test_detectors_tell_what_their_losses_need() -> None:
    few, many = (measure_step(partial(mask_rcnn, n), (64, 64), 2).peak() for n in (16, 512))
    assert measure_step(BackboneOnly, (64, 64), 2).peak() < few < many


def test_what_is_not_measured_is_said() -> None:
    with torch.device("meta"):
        dino = DINO(num_classes=3, backbone=partial(InternImageBackbone, **TINY), channels=64)
    assert [omitted_part(n) for n in (dino, BackboneOnly(), mask_rcnn(8), tiny())] == [
        "head", "head", "", "",
    ]  # fmt: skip


WIDE = {"channels": 64, "depths": (2, 2, 4, 2), "groups": (4, 8, 16, 32)}
SIZE, BATCH = 224, 8


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_measured_peak_of_a_real_step(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_kernels = fused.is_available(torch.ones(1))
    monkeypatch.setattr(fused, "is_available_on_meta", has_kernels)
    expected = measure_step(
        lambda: InternImage(num_classes=10, **WIDE),
        (SIZE, SIZE),
        BATCH,
        checkpointing=checkpointing,
    ).peak()
    network = InternImage(num_classes=10, **WIDE, grad_checkpointing=checkpointing).train()
    image = torch.zeros(BATCH, 3, SIZE, SIZE)
    found = peak_allocation(lambda: network(image).sum().backward())
    print(f"planned {expected / 2**20:.0f} MiB, measured {found / 2**20:.0f} MiB")
    assert found == pytest.approx(expected, rel=0.1)


def test_operations_are_those_of_the_counted_macs() -> None:
    network = partial(tiny)
    found = measure_step(network, (64, 64), 2, checkpointing=False).operations
    with torch.device("meta"):
        macs = count_macs(network(), torch.empty(2, 3, 64, 64))
    # The first convolution has no gradient of the images; sampling is not a matrix product.
    assert found == pytest.approx(6 * (macs.total - macs.sampling), rel=0.05)
