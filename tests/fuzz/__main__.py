"""``python -m tests.fuzz --count 2000``: feed mutated files to every reader and count faults."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.harness import fuzz
from tests.fuzz.readers import targets


def main() -> int:
    """Run; the exit status is 1 if there are faults, whose files are kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="files of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides the files (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(targets()), help="kinds (all)")
    args = parser.parse_args()
    faults = 0
    for kind, target in targets().items():
        if args.only and kind not in args.only:
            continue
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz_{kind}_"))
        outcome = fuzz(
            target.read,
            target.seeds,
            target.mutate,
            folder,
            name=target.name,
            count=args.count,
            seed=args.seed,
        )
        print(f"{kind}: {outcome}")
        for number, what in outcome.faults[:20]:
            print(f"  {folder}/fault_{number}_{target.name}: {what}")
        faults += len(outcome.faults)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
