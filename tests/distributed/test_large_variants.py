"""H (1.09 B parameters) and G (3.08 B) are built, sharded and trained without full copies."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from src.distributed import shard
from src.models.internimage.blocks import Block
from tests.distributed.conftest import ROOT, Launcher

PROCESSES = 8
H = ROOT / "configs" / "classification" / "internimage_h_22kto1k_640"
SHALLOW = {
    "depths": "[1, 1, 1, 1]",
    "level2_post_norm_block_ids": "[0]",
    "grad_checkpointing": "true",
}


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Mesh of eight ranks, of which only rank 0 exists."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", rank=0, world_size=PROCESSES, store=FakeStore())
    yield init_device_mesh("cpu", (PROCESSES,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("variant", ["internimage_h", "internimage_g"])
def test_built_and_sharded_on_the_meta_device(variant: str, mesh: DeviceMesh) -> None:
    with torch.device("meta"):
        network = timm.create_model(variant)
    shard(network, mesh, (Block,))
    whole = sum(p.numel() for p in network.parameters())
    own = sum(p.to_local().numel() for p in network.parameters())
    assert own == pytest.approx(whole / PROCESSES, rel=0.01)


STREAM = """
import os, sys, torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from src.distributed import materialise, shard
from src.models import InternImage
from src.models.internimage.blocks import Block
from src.models.weights import load_official
from tests.allocations import peak_allocation
from tests.distributed.test_large_variants import WIDE
torch.set_num_threads(1)
distributed.init_process_group("fake", rank=int(sys.argv[2]), world_size=8, store=FakeStore())
mesh = init_device_mesh("cpu", (8,))
with torch.device("meta"):
    network = InternImage(num_classes=1000, **WIDE)
shard(network, mesh, (Block,))
def fill():
    materialise(network, torch.device("cpu"))
    report = load_official(network, sys.argv[1])
    assert not report.fresh
peak = peak_allocation(fill, mapped=os.path.getsize(sys.argv[1]))
given = torch.load(sys.argv[1], mmap=True)
for name, entry in network.state_dict().items():
    whole = given[name].chunk(8)
    rank = int(sys.argv[2])
    own = whole[rank] if rank < len(whole) else given[name][:0]
    assert torch.equal(entry.to_local(), own), name
print(peak)
"""
WIDE = {
    "channels": 320,
    "depths": (1, 1, 1, 1),
    "groups": (10, 20, 40, 80),
    "res_post_norm": True,
    "dw_kernel_size": 5,
    "center_feature_scale": True,
    "use_clip_projector": True,
}


@pytest.mark.slow
def test_a_file_is_loaded_into_the_shards_of_a_rank(tmp_path: Path) -> None:
    from src.models import InternImage

    with torch.device("meta"):
        network = InternImage(num_classes=1000, **WIDE)
    network.to_empty(device="cpu")
    size = 0
    for number, tensor in enumerate(network.state_dict().values()):
        tensor.copy_(torch.arange(tensor.numel()).view_as(tensor) % 1000 + number)
        size += tensor.numel() * 4
    path = tmp_path / "shallow.pth"
    torch.save(network.state_dict(), path)
    del network
    for rank in (0, 7):
        command = [sys.executable, "-c", STREAM, str(path), str(rank)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        print(f"process {rank} of 8: {int(done.stdout) / size:.2f} of the network at the most")
        assert (
            int(done.stdout) < 0.5 * size
        )  # an eighth of the network, the largest layer, and small tensors


@pytest.mark.slow
@pytest.mark.heavy
def test_h_with_fewer_blocks_trains_on_two_ranks(
    launch: Launcher, images: Path, tmp_path: Path
) -> None:
    flags = ["--data.root", str(images), "--data.image_size", "64", "--data.batch_size", "2"]
    flags += ["--data.num_workers", "0", "--model.weights", "null"]
    flags += [part for k, v in SHALLOW.items() for part in (f"--model.network.{k}", v)]
    flags += ["--trainer.max_steps", "2", "--trainer.precision", "32-true"]
    flags += ["--trainer.accelerator", "cpu", "--trainer.strategy", "fsdp2"]
    flags += ["--trainer.limit_val_batches", "0"]
    run = launch(tmp_path, str(H), *flags, ranks=2, timeout=500)
    assert sorted(run.losses) == [1, 2]
    peaks = [int(output.rsplit("peak memory KiB:", 1)[1]) / 2**20 for output in run.output]
    print(f"peak of each process, GiB: {peaks}")
