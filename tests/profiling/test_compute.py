"""Operations of joint image-text pre-training."""

from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from src.models import ImageTextModel, InternImage, OpenCLIPTextTower, TextTower
from src.profiling.compute import PairCompute, Run, pair_compute
from src.profiling.profile import count_macs

TEXT = {"width": 32, "heads": 2, "layers": 2, "output_dim": 16, "context_length": 10}


def towers(**text) -> ImageTextModel:
    with torch.device("meta"):
        backbone = partial(InternImage, variant="internimage_t")
        return ImageTextModel(backbone, partial(TextTower, **TEXT | text))


def test_text_towers_are_counted_like_pytorch_does() -> None:
    with torch.device("meta"):
        tower = TextTower(**TEXT)
        tokens = torch.zeros(3, 10, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            tower(tokens)
    # The projection of the pooled token is not a module and left out: 3 x 32 x 16.
    assert 2 * (count_macs(tower, tokens).total + 3 * 32 * 16) == counter.get_total_flops()


def test_a_frozen_tower_costs_its_forward_pass() -> None:
    trained, frozen = (pair_compute(towers(frozen=value), (224, 224)) for value in (False, True))
    assert frozen.text == pytest.approx(trained.text / 3)
    assert frozen.image == trained.image
    assert trained.image == pytest.approx(6 * 4.9e9, rel=0.05)  # published: 5 GMACs


@pytest.mark.slow
def test_the_pre_training_of_h_takes_the_operations_of_the_paper() -> None:
    with torch.device("meta"):
        backbone = partial(InternImage, variant="internimage_h")
        network = ImageTextModel(backbone, OpenCLIPTextTower)
    run = Run(427_000_000, 30, 256, 8, 990e12, 0.4, 25e3)
    assert run.operations(pair_compute(network, (224, 224))) == pytest.approx(1.44e22, rel=0.02)


def test_hours_and_read_rate_follow() -> None:
    run = Run(10**6, 2, 16, 8, peak=1e12, utilisation=0.5, bytes_per_pair=1000)
    compute = PairCompute(image=4 * 10**9, text=10**9)
    assert run.operations(compute) == 1e16
    assert run.gpu_hours(compute) == pytest.approx(1e16 / 0.5e12 / 3600)
    assert run.pairs_per_second(compute) == 100
    assert run.read_rate(compute) == 8 * 100 * 1000
    assert run.volume == 1e9
