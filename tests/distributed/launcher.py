"""Run the command line with one or more ranks, like torchrun but without importing it each time.

Reads one job per line from standard input and returns the exit codes. Ranks are forked from this
process, which has imported everything but has not used any threads.
"""

import json
import os
import resource
import select
import sys
import time
import traceback
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

import src.cli.app
import src.data.transforms.detection
import src.data.transforms.segmentation  # noqa: F401
from src.cli import main


def run_rank(rank: int, ranks: int, port: int, arguments: list[str], log: Path) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    os.environ["MASTER_PORT"] = str(port)
    if ranks > 1:
        variables = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks}
        variables |= {"LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {name: str(value) for name, value in variables.items()}
        os.environ["TORCHELASTIC_RUN_ID"] = "tests"
        rank_zero_only.rank = rank  # read by Lightning at import
    code = 99
    try:
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    print("peak memory KiB:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(
    ranks: int, port: int, arguments: list[str], log: str, timeout: float
) -> dict[str, list[float]]:
    """Exit codes (negative: signals, None: timeout) and durations of the ranks."""
    begin = time.monotonic()
    children = {}
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            run_rank(rank, ranks, port, arguments, Path(f"{log}.{rank}"))
        children[pid] = rank
    codes, seconds = [None] * ranks, [None] * ranks
    while children and time.monotonic() - begin < timeout:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            if select.select([sys.stdin], [], [], 0.02)[0]:  # closed: the tests have ended
                break
            continue
        rank = children.pop(pid)
        codes[rank] = os.waitstatus_to_exitcode(status)
        seconds[rank] = time.monotonic() - begin
    for pid in children:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return {"codes": codes, "seconds": seconds}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)
