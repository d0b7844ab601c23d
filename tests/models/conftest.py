"""Official reference numbers: networks filled by a formula of the parameter name."""

import json
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from src.models import InternImage, InternImageBackbone
from tests.official import OfficialNumbers

FIXTURES = Path(__file__).parents[1] / "fixtures"
RENAMED_AWAY = ("with_cp", "type", "norm_layer", "level2_post_norm")
FLASH = {"core_op": "DCNv4", "dcn_output_bias": False, "mlp_fc2_bias": False}
"""What the official class of FlashInternImage does unless its arguments say otherwise."""


def name_noise(name: str, size: int) -> np.ndarray:
    """Pseudo-random numbers in [-1, 1) that depend on nothing but a name."""
    low32 = np.uint64(2**32 - 1)
    state = np.arange(size, dtype=np.uint64) * np.uint64(2654435761)
    state = (state + np.uint64(zlib.crc32(name.encode()))) & low32
    for _ in range(2):
        state = ((state ^ (state >> np.uint64(16))) * np.uint64(0x45D9F3B)) & low32
    state ^= state >> np.uint64(16)
    return state / 2.0**31 - 1.0


def name_weight(name: str, shape: list[int]) -> torch.Tensor:
    """Value of a parameter or buffer of the reference networks."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    noise = name_noise(name, math.prod(shape))
    if name.endswith("running_var"):
        value = 1 + 0.5 * np.abs(noise)
    elif len(shape) > 1:
        value = noise * np.sqrt(3 * shape[0] / math.prod(shape))
    elif name.endswith(("gamma1", "gamma2")):
        value = 0.5 + 0.2 * noise
    elif name.endswith(".weight"):
        value = 1 + 0.2 * noise
    else:
        value = 0.1 * noise
    return torch.from_numpy(value.reshape(shape).astype(np.float32))


@dataclass
class OfficialRun:
    """One run of the official code: how to rebuild it, and what came out."""

    spec: dict
    arrays: dict[str, torch.Tensor]
    prefix: str

    @property
    def numbers(self) -> OfficialNumbers:
        """What came out, with what float32 makes of it."""
        return OfficialNumbers.read(self.spec, self.arrays)

    def build(self, dtype=torch.float32, **changes):
        kind = InternImageBackbone if self.prefix else InternImage
        kwargs = {k: v for k, v in self.spec["kwargs"].items() if k not in RENAMED_AWAY}
        kwargs["core_op"] = kwargs.get("core_op", "DCNv3").removesuffix("_pytorch")
        if kwargs["core_op"] == "DCNv4":
            kwargs = FLASH | kwargs
        return kind(**(kwargs | changes)).to(dtype)

    def weights(self) -> dict[str, torch.Tensor]:
        """State dict under the official names, as in a whole detector for the backbones."""
        names = [(self.prefix + name, shape) for name, shape, _ in self.spec["state_dict"]]
        return {name: name_weight(name, shape) for name, shape in names}

    def input(self, name: str, dtype=torch.float32) -> torch.Tensor:
        found = re.fullmatch(
            r"arr\('(.+)', ?\(([\d,]+)\)(?:, ?([\d.]+))?\)", self.spec["inputs"][name]
        )
        shape = [int(n) for n in found[2].split(",")]
        noise = name_noise(found[1], math.prod(shape)) * float(found[3] or 1)
        return torch.from_numpy(noise.reshape(shape).astype(np.float32)).to(dtype)


def load_run(name: str) -> OfficialRun:
    spec = json.loads((FIXTURES / f"{name}.json").read_text())
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        content = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    return OfficialRun(spec, content, "backbone." if "backbone" in name else "")


@pytest.fixture(scope="session")
def official_run():
    """Reads a reference run by name."""
    return load_run
