"""Build every published file by its name, and compare its tensors with those of the official code.

    python benchmarks/published_files.py             # all files; minutes and 4 GiB
    python benchmarks/published_files.py --largest 0 # compare names and shapes only

``tests/fixtures/published_files.json`` lists the files that the READMEs of OpenGVLab/InternImage
and OpenGVLab/DCNv4 link, and one more, with the number of tensors and parameters and a checksum of
all names and shapes, counted from the official code. Every network is built on the meta device and
compared with them. For networks of up to ``--largest`` parameters, a file with the official names
and shapes, and values that depend on the name, then takes the place of the download:
``Pretrained.from_pretrained`` reads it, and every value is compared. The result is
``benchmarks/results/published_files.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from src import files  # noqa: E402
from src.errors import UserError  # noqa: E402
from src.hub import Pretrained  # noqa: E402
from src.hub.published import build_published  # noqa: E402
from src.models.weights import to_official  # noqa: E402

OFFICIAL: dict[str, dict[str, Any]] = json.loads(
    (ROOT / "tests" / "fixtures" / "published_files.json").read_text(encoding="utf-8")
)
RESULT = ROOT / "benchmarks" / "results" / "published_files.md"


def checksum(network: nn.Module) -> str:
    """Checksum of the official names and the shapes of all tensors."""
    lines = [f"{key} {list(value.shape)}\n" for key, value in sorted(to_official(network).items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def value_of(name: str) -> float:
    """A value in [0, 1) that depends on nothing but the name of a tensor."""
    return zlib.crc32(name.encode()) / 2**32


def loads_every_value(name: str, network: nn.Module) -> bool:
    """Read a file with the tensors of ``network`` by its name, and compare all values."""
    state = {
        key: torch.tensor(3) if value.ndim == 0 else torch.full(value.shape, value_of(key))
        for key, value in to_official(network).items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.pth"
        torch.save({"model": state}, path)
        loaded = to_official(Pretrained.from_pretrained(path).network)
    return loaded.keys() == state.keys() and all(
        bool((loaded[key] == value).all()) for key, value in state.items()
    )


def row_of(name: str, largest: int) -> tuple[str, bool]:
    """The row of a file in the table, and whether everything agrees."""
    official = OFFICIAL[name]
    try:
        with torch.device("meta"):
            parts = build_published(name)
    except (UserError, AttributeError) as error:
        return f"| `{name}` | no: {str(error)[:80]} | | | | | |", False
    network = parts.network
    tensors, parameters = len(network.state_dict()), sum(p.numel() for p in network.parameters())
    same = checksum(network) == official["sha256"]
    agrees = same and (tensors, parameters) == (official["tensors"], official["parameters"])
    values = "not tried"
    if parameters <= largest:
        loaded = loads_every_value(name, network)
        values, agrees = "all" if loaded else "WRONG", agrees and loaded
    cells = [
        f"`{name}`",
        f"yes ({type(network).__name__}, {len(parts.class_names)} classes)",
        f"{tensors}",
        "equal" if same else "DIFFERENT",
        f"{parameters:,}",
        "equal" if parameters == official["parameters"] else f"official {official['parameters']:,}",
        values,
    ]
    return f"| {' | '.join(cells)} |", agrees


def main() -> int:
    """Write the table; 1 if a file does not agree."""
    parser = argparse.ArgumentParser(description="Build every published file by its name.")
    parser.add_argument(
        "--largest",
        type=int,
        default=100_000_000,
        help="most parameters of a network that a file is written and read for (%(default)s)",
    )
    args = parser.parse_args()
    rows, right = [], 0
    for name in sorted(OFFICIAL):
        row, agrees = row_of(name, args.largest)
        rows.append(row)
        right += agrees
        print(row, flush=True)
    head = [
        "# Published files",
        "",
        "Made by `python benchmarks/published_files.py`: the network of every published file, built"
        " by its name, against the official code. Names and",
        "shapes are compared with a checksum. In the last column, a file with these names and"
        " shapes, and known values, was read in place of the",
        f"download, and all values were compared (networks of up to {args.largest:,} parameters)."
        " The released files were not downloaded.",
        "",
        f"{right} of {len(rows)} agree.",
        "",
        "| name | builds | tensors | names and shapes | parameters | official count | values |",
        "| --- | --- | ---: | --- | ---: | --- | --- |",
    ]
    files.write_text(RESULT, "\n".join([*head, *rows]) + "\n")
    print(f"{right} of {len(rows)} agree; {RESULT}")
    return int(right < len(rows))


if __name__ == "__main__":
    sys.exit(main())
