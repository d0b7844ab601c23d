"""Every published file is built by its name, with the tensors of the official code."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from src.hub.published import build_published
from src.models.weights.files import HUB_FILES, hub_repository

ROOT = Path(__file__).parents[2]
OFFICIAL = json.loads((ROOT / "tests/fixtures/published_files.json").read_text())
_spec = importlib.util.spec_from_file_location(
    "published_files", ROOT / "benchmarks" / "published_files.py"
)
assert _spec is not None
assert _spec.loader is not None
benchmark = importlib.util.module_from_spec(_spec)
sys.modules["published_files"] = benchmark
_spec.loader.exec_module(benchmark)

# Named in the official configurations, but not linked.
NOT_LINKED = {
    "dino_4scale_cbinternimage_h_objects365_80classes",
    "dino_4scale_cbinternimage_h_objects365_20classes",
}
SMALL = sorted(name for name in OFFICIAL if OFFICIAL[name]["parameters"] < 60_000_000)


def test_every_file_has_a_name() -> None:
    assert len(OFFICIAL) == 57 + 24 + 1  # linked by the two repositories; FlashInternImage-L of 22k
    assert set(HUB_FILES) - NOT_LINKED == OFFICIAL.keys()
    for name, entry in OFFICIAL.items():
        assert hub_repository(name) == entry["repository"]


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_network_has_the_official_tensors(name: str) -> None:
    with torch.device("meta"):
        network = build_published(name).network
    official = OFFICIAL[name]
    assert sum(p.numel() for p in network.parameters()) == official["parameters"]
    assert len(network.state_dict()) == official["tensors"]
    assert benchmark.checksum(network) == official["sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_file_in_place_of_the_download(name: str) -> None:
    with torch.device("meta"):
        network = build_published(name).network
    assert benchmark.loads_every_value(name, network)


def test_the_committed_table_is_complete() -> None:
    rows = benchmark.RESULT.read_text(encoding="utf-8")
    assert f"{len(OFFICIAL)} of {len(OFFICIAL)} agree." in rows
    for name, entry in OFFICIAL.items():
        row = next(line for line in rows.splitlines() if line.startswith(f"| `{name}` |"))
        assert "| yes (" in row
        assert f"| {entry['tensors']} | equal | {entry['parameters']:,} | equal |" in row
