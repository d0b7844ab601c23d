"""CLIP and SigLIP losses: values, gradients over ranks, memory."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.multiprocessing import spawn

from src.errors import UserError
from src.losses.contrastive import CLIPLoss, SigLIPLoss
from tests.allocations import peak_allocation

PAIRS, WIDTH = 24, 8
LOSSES = {"clip": CLIPLoss, "siglip": SigLIPLoss}


def features(pairs: int = PAIRS, width: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        F.normalize(torch.randn(pairs, width, generator=generator), dim=-1) for _ in range(2)
    )


class Towers(nn.Module):
    """Two linear towers, temperature and bias."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.image, self.text = nn.Linear(WIDTH, 6), nn.Linear(WIDTH, 6)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.bias = nn.Parameter(torch.tensor(-3.0))

    def forward(self, loss: nn.Module, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        image, text = (F.normalize(x, dim=-1) for x in (self.image(image), self.text(text)))
        return loss(image, text, self.scale, self.bias)


def value_and_gradients(loss: nn.Module, image, text) -> list[torch.Tensor]:
    """Loss and gradients of one rank, averaged over all ranks as DDP does."""
    towers = Towers()
    value = towers(loss, image, text)
    value.backward()
    found = [value.detach(), *(p.grad for p in towers.parameters() if p.grad is not None)]
    if distributed.is_initialized():
        for tensor in found:
            distributed.all_reduce(tensor)
            tensor /= distributed.get_world_size()
    return found


def run_rank(rank: int, ranks: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    part = slice(rank * PAIRS // ranks, (rank + 1) * PAIRS // ranks)
    image, text = features()
    for name, loss in LOSSES.items():
        found = value_and_gradients(loss(max_logits=70), image[part], text[part])
        if rank == 0:
            torch.save(found, f"{folder}/{name}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_give_the_loss_and_gradients_of_one_process(ranks: int, ports, tmp_path) -> None:
    spawn(run_rank, (ranks, next(ports), str(tmp_path)), nprocs=ranks)
    for name, loss in LOSSES.items():
        alone = value_and_gradients(loss(), *features())
        together = torch.load(tmp_path / f"{name}.pt")
        assert len(together) == len(alone)
        for one, many in zip(alone, together, strict=True):
            assert torch.allclose(many, one, rtol=1e-6, atol=1e-6)


def test_clip_loss_is_the_mean_of_both_cross_entropies() -> None:
    image, text = features()
    logits = 10 * image @ text.T
    target = torch.arange(PAIRS)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert CLIPLoss()(image, text, torch.tensor(10.0), None) == pytest.approx(expected.item())


def test_siglip_loss_sums_over_texts_and_averages_over_images() -> None:
    image, text = features()
    sign = 2 * torch.eye(PAIRS) - 1
    expected = -F.logsigmoid(sign * (10 * image @ text.T - 3)).sum() / PAIRS
    found = SigLIPLoss()(image, text, torch.tensor(10.0), torch.tensor(-3.0))
    assert found == pytest.approx(expected.item())


@pytest.mark.parametrize("name", LOSSES)
def test_blocks_change_neither_loss_nor_gradients(name: str) -> None:
    whole = value_and_gradients(LOSSES[name](), *features())
    for max_logits in (1, 5 * PAIRS):
        blocks = value_and_gradients(LOSSES[name](max_logits=max_logits), *features())
        for one, many in zip(whole, blocks, strict=True):
            assert torch.allclose(many, one, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_memory_grows_linearly_with_the_batch(name: str) -> None:
    def peak(pairs: int) -> int:
        image, text = (x.requires_grad_() for x in features(pairs, 16))
        scale, bias = torch.tensor(10.0), torch.tensor(-3.0)
        loss = LOSSES[name](max_logits=2**16)
        return peak_allocation(lambda: loss(image, text, scale, bias).backward())

    small, large = peak(512), peak(4096)  # 4 and 256 blocks
    assert large < 8 * small  # the logits alone would need 64 times as much
    assert large < 4096 * 4096 * 4 / 8


def test_siglip_without_bias_is_refused() -> None:
    with pytest.raises(UserError, match="logit_bias"):
        SigLIPLoss()(*features(), torch.tensor(10.0), None)


def test_no_logits_are_refused() -> None:
    with pytest.raises(UserError, match="at least 1, got 0"):
        CLIPLoss(max_logits=0)
