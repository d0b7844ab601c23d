"""A process of this run is gone: what the others do and say."""

from __future__ import annotations

import os
import re
import sys
import threading
import time

LOST = (
    "Another process of this run has stopped or cannot be reached, so this one stops too; the cause"
    " is in the output of the other one. To go on: the same command with --ckpt_path last"
)
DEAD_WORKER = (
    "A process that reads pictures has died, most likely because the memory of the machine was"
    " used up. Lower data.num_workers or data.batch_size; to go on: the same command with"
    " --ckpt_path last"
)
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid[^)]*\) (?:is killed|exited)")
_LOST_CONNECTION = re.compile(
    r"Connection (?:was )?(?:closed|reset|refused)|Broken pipe|gloo.*(?:closed|timed? ?out)"
    r"|NCCL.*(?:abort|closed|timed? ?out|remote)|Read error \[|recvValue failed|TCPStore",
    re.IGNORECASE | re.DOTALL,
)
_STARTED_BY_OTHERS = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")


def explanation(error: BaseException) -> str | None:
    """What an error says about other processes, in words; ``None`` if it says nothing."""
    if _DEAD_WORKER.search(str(error)):
        return DEAD_WORKER
    return LOST if _is_about_lost_process(error) else None


def _is_about_lost_process(error: BaseException) -> bool:
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return False
    is_alone = distributed.get_world_size() == 1
    return not is_alone and _LOST_CONNECTION.search(str(error)) is not None


def stop_with_parent(seconds: float = 2.0) -> None:
    """End a process that Lightning has started when the first process is gone.

    On a GPU it would otherwise wait in a collective operation until the time-out of NCCL. torchrun
    and SLURM look after their processes themselves, and Lightning looks after those it has started
    as long as it lives.

    Args:
        seconds: Time between two looks.
    """
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if is_first or any(name in os.environ for name in _STARTED_BY_OTHERS):
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        print(f"error: {LOST}", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
